"""Whether a store's targets fit the frames and tokens of a student's data."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdpipe.corpus.manifest import read_manifest
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
