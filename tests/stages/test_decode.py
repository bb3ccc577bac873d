"""What decode does with a torn line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdpipe.features.prepared import PreparedData
from kdpipe.stages.decode import Runtime, decode_split
from kdpipe.stages.recognise import SearchSettings
from kdpipe.testing import random_model

GREEDY = SearchSettings(mode="ctc")
CPU = Runtime("cpu")


@pytest.fixture(scope="module")
def student(tiny_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tiny_data, tmp_path_factory.mktemp("models") / "student", "mask-ctc")


def test_a_line_torn_inside_a_character_is_decoded_again(
    tiny_data: PreparedData, student: Path, tmp_path: Path
) -> None:
    decode_split(student, tiny_data.folder, "test", tmp_path / "out", GREEDY, CPU)
    before = (tmp_path / "out" / "hyp.jsonl").read_bytes()
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    (tmp_path / "out" / "run.json").write_text(json.dumps({**record, "complete": False}))
    partial = tmp_path / "out" / "partial.jsonl"
    lines = partial.read_bytes().splitlines(keepends=True)
    torn = '{"id": "test-002", "nbest": [{"text": "好'.encode()[:-1]
    partial.write_bytes(b"".join(lines[:2]) + torn)
    decode_split(student, tiny_data.folder, "test", tmp_path / "out", GREEDY, CPU)
    assert (tmp_path / "out" / "hyp.jsonl").read_bytes() == before
