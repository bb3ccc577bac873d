"""Finishing over damage loses nothing; what comes beside or after it is told so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.store.contract import make_header, make_targets, write_targets

from kdpipe.errors import OutputConflictError, StoreDamageError, StoreFormatError
from kdpipe.store import StoreWriter, finish, open_store, store_state
from kdpipe.store.check import verify_store
from kdpipe.store.journal import working_lock
from kdpipe.store.paths import working_folder
from kdpipe.store.repair import drop_utterances
from kdpipe.store.transfer import copy_store

HEADER = make_header()
NAMES = pytest.mark.parametrize("name", ["s.zarr", "s.h5"])


@NAMES
@pytest.mark.parametrize("gone", [True, False], ids=["gone", "cut-short"])
def test_a_damaged_shard_is_refused_and_the_others_stay(
    tmp_path: Path, name: str, gone: bool
) -> None:
    path = tmp_path / name
    for part in range(3):
        write_targets(path, HEADER, range(4 * part, 4 * part + 4))
    shard = working_folder(path) / "records/c/1"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    if gone:
        shard.unlink()
    with pytest.raises(StoreDamageError):
        finish(path)
    assert store_state(path) == "partial"
    damaged = verify_store(path).damaged_ids
    assert set(damaged) <= {f"utt-{seed:05d}" for seed in range(4, 8)}
    assert damaged
    drop_utterances(path)
    write_targets(path, HEADER, range(4, 8))
    write_targets(tmp_path / "whole.zarr", HEADER, range(12))
    assert finish(path) == finish(tmp_path / "whole.zarr")


@NAMES
def test_a_writer_that_comes_as_another_finishes_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
    write_targets(path, HEADER, range(3))

    def finished_before(working: Path, name: str, **settings: Any) -> Any:
        if name == "writers.lock":
            monkeypatch.undo()
            finish(path)
        return working_lock(working, name, **settings)

    monkeypatch.setattr("kdpipe.store.writer.working_lock", finished_before)
    with pytest.raises(StoreFormatError, match="is complete"):
        StoreWriter(path, HEADER)
    assert verify_store(path).sound
    finish(path)  # No lock is left behind.


@NAMES
def test_records_without_a_header_are_nobodys(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_targets(path, HEADER, range(3))
    (working_folder(path) / "journal/header.json").unlink()
    with pytest.raises(StoreFormatError, match="no teacher store"):
        StoreWriter(path, make_header())


def test_a_copy_does_not_take_the_place_of_a_store_under_construction(tmp_path: Path) -> None:
    write_targets(tmp_path / "s.h5", HEADER, range(3))
    finish(tmp_path / "s.h5")
    target = tmp_path / "t.h5"
    with StoreWriter(target, HEADER) as writer:
        writer.add(make_targets(7, HEADER))
    with pytest.raises(OutputConflictError, match="under construction"):
        copy_store(str(tmp_path / "s.h5"), str(target))
    finish(target)
    assert list(open_store(target)) == ["utt-00007"]
