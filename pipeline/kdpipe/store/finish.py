"""Finishing a store: journals become the index; records stay where they are, or go to HDF5."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdpipe.errors import InputNotFoundError, StoreIncompleteError
from kdpipe.store.blocks import checked, mapped_blocks
from kdpipe.store.hdf5_backend import write_hdf5
from kdpipe.store.index import ContentDigest, build_index
from kdpipe.store.journal import (
    Ledger,
    journal_folder,
    read_ledger,
    read_working_header,
    working_lock,
)
from kdpipe.store.opening import image_of_ledger, ledger_rows, open_image
from kdpipe.store.paths import backend_of, store_state, unless_finished, working_folder
from kdpipe.store.schema import Fidelity, StoreHeader
from kdpipe.store.writer import write_failure
from kdpipe.store.zarr_backend import seal_shards, write_zarr_metadata

__all__ = ["finish"]

ROWS_AT_ONCE = 1 << 12


def finish(path: Path, expected: Iterable[str] | None = None) -> str:
    """Complete the store at `path` and return its content digest; repeating it does no harm.

    With `expected` every one of these utterances must be there. Raises `BusyOutputError` while a
    writer is at work, `StoreIncompleteError` when utterances are missing, `StoreDamageError` when
    records are not what was written and `StoreWriteError` when the disk refuses: then nothing is
    lost, and `finish` may be called again.
    """
    working = working_folder(path)
    if store_state(path) == "partial":
        unless_finished(path, lambda: _finish_alone(path, working, set(expected or ())))
    if store_state(path) == "absent":
        raise InputNotFoundError(path, "teacher store", "Run kdpipe teacher-dump first")
    for leftover in {journal_folder(working), *([working] if working != path else [])}:
        shutil.rmtree(leftover, ignore_errors=True)
    return str(open_image(path).digest)


def _finish_alone(path: Path, working: Path, expected: set[str]) -> None:
    with working_lock(working, "writers.lock", shared=False, wait=False):
        if store_state(path) == "complete":  # Another finished it a moment before.
            return
        try:
            _finish(path, working, expected)
        except OSError as error:
            raise write_failure(path, error) from error


def _finish(path: Path, working: Path, expected: set[str]) -> None:
    ledger = read_ledger(working)
    if expected and expected - {name.decode() for name in ledger.ids}:
        raise StoreIncompleteError(path, len(set(ledger.ids)))
    header, shard_bytes = read_working_header(working)
    header = replace(header, fidelity=_wider(header.fidelity, _fidelity(ledger)))
    rows = ledger_rows(ledger)
    ledger.rows.clear()
    index, order = build_index(ledger.ids, rows)
    digest = _digest(header, ledger, order)
    if backend_of(path) == "zarr":
        files = seal_shards(working, ledger.shards, shard_bytes)
        write_zarr_metadata(path, header, digest, index, files, shard_bytes)
        return
    image = image_of_ledger(path, working, header, ledger, shard_bytes, index)
    # What is taken over is read for the last time: the parts go when the file is there.
    write_hdf5(path, header, digest, index, checked(mapped_blocks(image), path, header, digest))


def _digest(header: StoreHeader, ledger: Ledger, order: NDArray[np.int64]) -> str:
    digests = np.concatenate([np.zeros((0, 32), np.uint8), *ledger.digests])
    ledger.digests.clear()
    total = ContentDigest(header)
    for start in range(0, len(order), ROWS_AT_ONCE):
        total.update(digests[order[start : start + ROWS_AT_ONCE]].tobytes())
    return total.hexdigest()


def _fidelity(ledger: Ledger) -> Fidelity | None:
    """Means over all rows of the sample, summed in the order of ids so that it is repeatable."""
    if not ledger.fidelity:
        return None
    sums = np.asarray([ledger.fidelity[key] for key in sorted(ledger.fidelity)])
    frame_kl, frames, token_kl, tokens = sums.sum(axis=0).tolist()
    return Fidelity(frame_kl / max(frames, 1), token_kl / max(tokens, 1), len(sums))


def _wider(before: Fidelity | None, now: Fidelity | None) -> Fidelity | None:
    """What was measured on more utterances: a repair measures only those it dumped again."""
    found = [fidelity for fidelity in (now, before) if fidelity is not None]
    return max(found, key=lambda fidelity: fidelity.utterances, default=None)
