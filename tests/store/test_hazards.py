"""What goes wrong beside the store: others at work on it, forks, and what writers are given."""

from __future__ import annotations

import errno
import mmap
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.store.contract import make_header, make_targets, write_targets

from kdpipe.errors import BusyOutputError, DataError, OutputConflictError, StoreWriteError
from kdpipe.store import StoreWriter, UtteranceTargets, finish, open_store, repair, store_state
from kdpipe.store.check import verify_store
from kdpipe.store.convert import convert_store
from kdpipe.store.encode import EMPTY_POSTERIOR
from kdpipe.store.hdf5_backend import DATASETS, read_user_block
from kdpipe.store.journal import journal_folder, working_lock
from kdpipe.store.paths import working_folder
from kdpipe.store.repair import drop_utterances
from kdpipe.store.schema import SparsePosterior

HEADER = make_header()
NAMES = pytest.mark.parametrize("name", ["s.zarr", "s.h5"])


@NAMES
def test_finishing_twice_at_once_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
    for part in range(3):
        write_targets(path, HEADER, range(4 * part, 4 * part + 4))
    digests = []

    def finished_before(working: Path, name: str, **settings: Any) -> Any:
        """Another has finished, and is taking the journals away."""
        monkeypatch.undo()
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)
            digests.append(finish(path))
        next(journal_folder(working).glob("*.jsonl")).unlink()
        return working_lock(working, name, **settings)

    monkeypatch.setattr(sys.modules["kdpipe.store.finish"], "working_lock", finished_before)
    digests.append(finish(path))
    assert len(set(digests)) == 1
    assert verify_store(path).sound
    assert len(open_store(path)) == 12


@NAMES
def test_a_second_repair_is_refused_while_one_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
    write_targets(path, HEADER, range(6))
    finish(path)
    rebuild = repair._rebuild

    def beside_another(*arguments: Any) -> list[str]:
        with pytest.raises(BusyOutputError):
            drop_utterances(path)
        return rebuild(*arguments)

    monkeypatch.setattr(repair, "_rebuild", beside_another)
    assert drop_utterances(path, ["utt-00002"]) == ["utt-00002"]
    assert len(open_store(path, allow_partial=True)) == 5


def test_a_process_forked_meanwhile_does_not_keep_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    waiting, release = os.pipe()
    with StoreWriter(path, HEADER) as writer:
        writer.add(make_targets(0, HEADER))
        child = os.fork()
        if not child:
            os.close(release)
            os.read(waiting, 1)
            os._exit(0)
    try:
        finish(path)
    finally:
        os.close(release)
        os.close(waiting)
        os.waitpid(child, 0)
    assert verify_store(path).sound


@pytest.mark.parametrize("swap", [False, True])
def test_a_store_of_other_streams_is_not_resumed(tmp_path: Path, swap: bool) -> None:
    headers = [make_header(streams=("nbest",)), HEADER]
    first, second = reversed(headers) if swap else headers
    with StoreWriter(tmp_path / "s.zarr", first):
        pass
    with pytest.raises(OutputConflictError, match="streams"):
        StoreWriter(tmp_path / "s.zarr", second)


@pytest.mark.parametrize(
    "changes",
    [
        {"frame_shift_seconds": 0.0},
        {"nbest": -1},
        {"decode": {"beam": np.int64(3)}},
        {"decode": {"beam": float("nan"), 3: {1, 2}}},
        {"licence": "\udcff"},
    ],
)
def test_a_header_that_no_store_can_hold_lays_nothing_down(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    path = tmp_path / "s.zarr"
    with pytest.raises(DataError, match="header of a store"):
        StoreWriter(path, make_header(**changes))
    assert not path.exists()
    write_targets(path, HEADER, range(1))


def test_a_header_is_compared_as_the_store_gives_it_back(tmp_path: Path) -> None:
    header = make_header(decode={"beams": (1, 2), "weights": {3: 0.5}})
    for seeds in (range(1), range(1, 2)):
        write_targets(tmp_path / "s.zarr", header, seeds)
    finish(tmp_path / "s.zarr")
    assert open_store(tmp_path / "s.zarr").header.decode["beams"] == [1, 2]


def rows(counts: list[int], ids: list[int], probs: list[float], tail: list[float]) -> Any:
    return SparsePosterior(
        np.asarray(counts, np.uint8),
        np.asarray(ids, np.int32),
        np.log(np.asarray(probs, np.float32)),
        np.asarray(tail, np.float32),
    )


@pytest.mark.parametrize(
    ("frames", "problem"),
    [
        (rows([1, 3], [4, 1, 2, 3], [0.9, 0.1, 0.2, 0.69], [0.1, 0.01]), "descending"),
        (rows([2], [1, 2], [1e-4, 1e-4], [0.0]), "sum to 0.0002"),
        (rows([2, 2], [1, 2, 5, 5], [0.6, 0.4, 0.6, 0.4], [0.0, 0.0]), "class twice"),
    ],
)
def test_rows_that_are_no_distributions_are_refused(
    tmp_path: Path, frames: SparsePosterior, problem: str
) -> None:
    with StoreWriter(tmp_path / "s.zarr", HEADER) as writer:
        with pytest.raises(DataError, match=problem):
            writer.add(UtteranceTargets("a", frames, EMPTY_POSTERIOR, (), ()))
        whole = rows([1, 2, 1], [4, 4, 1, 4], [0.9, 0.6, 0.4, 1.0], [0.1, 0.0, 0.0])
        assert writer.add(UtteranceTargets("a", whole, EMPTY_POSTERIOR, (), ()))


def test_the_limit_of_hypotheses_is_of_each_utterance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.zarr"
    write_targets(path, HEADER, range(20))
    finish(path)
    store = open_store(path)
    most = max(sum(len(h.tokens) for h in store[name].nbest) for name in store)
    monkeypatch.setattr("kdpipe.store.ragged.MAX_TOKENS", most)
    assert len(store.read_batch(store.ids).nbest.tokens) > most
    monkeypatch.setattr("kdpipe.store.record.MAX_TOKENS", most - 1)
    with pytest.raises(DataError, match=f"more than {most - 1} tokens together"):
        write_targets(tmp_path / "t.zarr", HEADER, range(20))


def test_a_closed_writer_takes_nothing(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "s.zarr", HEADER)
    writer.close()
    with pytest.raises(StoreWriteError, match="closed"):
        writer.add(make_targets(0, HEADER))


def test_ids_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    with (
        StoreWriter(path, HEADER) as writer,
        pytest.raises(DataError, match="no Unicode text"),
    ):
        writer.add(replace(make_targets(0, HEADER), id="\udcff"))
    finish(path)
    store = open_store(path)
    assert "\udcff" not in store
    assert store.missing(["\udcff"]) == ["\udcff"]


def test_the_look_up_of_an_hdf5_store_is_aligned(tmp_path: Path) -> None:
    for count in range(1, 5):
        source = tmp_path / f"{count}.zarr"
        write_targets(source, HEADER, range(count))
        finish(source)
        convert_store(source, tmp_path / "new" / f"{count}.h5")
        _, _, _, extents = read_user_block(tmp_path / "new" / f"{count}.h5")
        assert [extents[name][0] % 8 for name in DATASETS] == [0] * len(DATASETS)


@NAMES
@pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES])
def test_what_is_not_the_stores_fault_is_not_said_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    path = tmp_path / name
    write_targets(path, HEADER, range(2))
    finish(path)

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(mmap, "mmap", refuse)
    calls: list[Callable[[], object]] = [
        lambda: open_store(path),
        lambda: verify_store(path),
    ]
    for call in calls:
        with pytest.raises(OSError, match=os.strerror(code)) as caught:
            call()
        assert (caught.value.errno, caught.value.filename is None) == (code, False)
    assert store_state(path) == "complete"


def test_a_pickled_store_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_targets(Path("s.zarr"), HEADER, range(2))
    finish(Path("s.zarr"))
    pickled = pickle.dumps(open_store("s.zarr"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(pickle.loads(pickled)) == 2
    assert working_folder(tmp_path / "s.zarr").is_dir()
