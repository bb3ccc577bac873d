"""Whether a store's targets fit the frames and tokens of a student's data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kdpipe.corpus.manifest import read_manifest
from kdpipe.corpus.utterance import Utterance
from kdpipe.errors import MismatchError
from kdpipe.features.prepared import PreparedData
from kdpipe.stages.cached_targets import check_store
from kdpipe.stages.prepare import PrepareSettings, prepare
from kdpipe.stages.teacher_dump import DumpSettings, Shard, teacher_dump
from kdpipe.store import open_store
from kdpipe.testing import random_model, tiny_manifest
from kdpipe.text.tokenizer import Tokenizer


def test_other_speech_under_the_same_ids_is_refused(
    tiny_data: PreparedData, tmp_path: Path
) -> None:
    teacher, path = random_model(tiny_data, tmp_path / "teacher", "ar"), tmp_path / "d.zarr"
    settings = DumpSettings(nbest=1, beam=1)
    assert teacher_dump(tiny_data.folder, "dev", teacher, path, settings, Shard(), "cpu")
    store, tokenizer = open_store(path), Tokenizer.load(tiny_data.tokenizer)
    check_store(store, tiny_data, tiny_data.split("dev"), tokenizer)
    other = read_manifest(tiny_manifest(tmp_path / "dev", 6, 77))
    prepare({"dev": other}, tmp_path / "data", PrepareSettings(like=tiny_data.folder), workers=0)
    data = PreparedData.open(tmp_path / "data")
    with pytest.raises(MismatchError, match=r"frames and token rows of \d utterances .first dev-0"):
        check_store(store, data, data.split("dev"), tokenizer)


def test_another_text_of_as_many_tokens_is_refused(tiny_data: PreparedData, tmp_path: Path) -> None:
    teacher, path = random_model(tiny_data, tmp_path / "teacher", "ar"), tmp_path / "d.zarr"
    settings = DumpSettings(nbest=1, beam=1)
    assert teacher_dump(tiny_data.folder, "dev", teacher, path, settings, Shard(), "cpu")
    store, tokenizer = open_store(path), Tokenizer.load(tiny_data.tokenizer)
    first, second = read_manifest(tiny_data.folder.parent / "dev" / "manifest.jsonl")[:2]
    mended = replace(first, text=str(first.text)[::-1])
    assert mended != first

    def check(name: str, *dev: Utterance) -> None:
        settings = PrepareSettings(like=tiny_data.folder)
        prepare({"dev": dev}, tmp_path / name, settings, workers=0)
        data = PreparedData.open(tmp_path / name)
        check_store(store, data, data.split("dev"), tokenizer)

    check("part", first, second)
    with pytest.raises(MismatchError, match=f"reference tokens of {first.id}"):
        check("mended", mended, second)
    with pytest.raises(MismatchError, match="lacks 1, first further"):
        check("further", first, replace(second, id="further"))
