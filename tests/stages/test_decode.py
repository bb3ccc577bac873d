"""What decode does with a torn line and several channels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kdpipe.corpus.manifest import read_manifest
from kdpipe.features.audio import Channel
from kdpipe.features.prepared import PreparedData
from kdpipe.files import read_jsonl
from kdpipe.stages.decode import Runtime, decode_audio, decode_split
from kdpipe.stages.prepare import PrepareSettings, prepare
from kdpipe.stages.recognise import SearchSettings
from kdpipe.testing import random_model, tiny_manifest, tone_waveform

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


@pytest.mark.parametrize("channel", ["first", "mix"])
def test_audio_files_are_heard_on_the_models_channel(channel: Channel, tmp_path: Path) -> None:
    chords = read_manifest(tiny_manifest(tmp_path / "chords", 6, 0))
    prepare({"train": chords}, tmp_path / "data", PrepareSettings(channel=channel), workers=0)
    data = PreparedData.open(tmp_path / "data")
    model = random_model(data, tmp_path / "student", "mask-ctc")
    random = np.random.default_rng(0)
    left, right = (tone_waveform(text, random)[:12_000] for text in ("ABCD", "FEDC"))
    sounds = {"first": left, "mix": (left + right) / 2, "stereo": np.stack([left, right], 1)}
    for name, sound in sounds.items():
        soundfile.write(tmp_path / f"{name}.wav", sound, 16_000, subtype="FLOAT")
    files = [tmp_path / f"{name}.wav" for name in sounds]
    decode_audio(model, files, tmp_path / "out", GREEDY, CPU)
    scores = {line["id"]: line["score"] for line in read_jsonl(tmp_path / "out" / "hyp.jsonl")}
    assert scores["first"] != scores["mix"]
    assert scores["stereo"] == scores[channel]
