"""Taking utterances out of a store, so that a teacher can dump just those again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from kdpipe.errors import BusyOutputError, StoreFormatError
from kdpipe.store.blocks import Block, mapped_blocks
from kdpipe.store.check import broken_records
from kdpipe.store.hdf5_backend import salvage_hdf5
from kdpipe.store.image import StoreImage
from kdpipe.store.journal import (
    read_working_header,
    store_lock,
    survey_ledger,
    working_lock,
)
from kdpipe.store.layout import COLUMN, LENGTH_COLUMNS, Widths
from kdpipe.store.opening import image_of_ledger
from kdpipe.store.paths import backend_of, is_compact, store_state, working_folder
from kdpipe.store.record import Record
from kdpipe.store.schema import StoreHeader
from kdpipe.store.writer import StoreWriter
from kdpipe.store.zarr_backend import salvage_zarr

__all__ = ["complete_swap", "drop_utterances", "record_at", "salvaged_header"]


def drop_utterances(path: Path, ids: Collection[str] = ()) -> list[str]:
    """Turn a store into one under construction that lacks `ids` and all damaged utterances.

    What is sound is kept byte by byte and all metadata is written anew, so a `StoreWriter` with
    the same header adds what is missing and `finish` completes the store. Returns the ids that
    went (damaged ids may be garbled). The old store stays until the new one is whole; after a
    crash the same call goes on. Raises `StoreDamageError` when header or index are beyond use,
    `BusyOutputError` while a writer is at work.
    """
    complete_swap(path)
    with _repairing(path), _alone(path):
        image, fidelity = _salvage(path)
        dropped = _rebuild(path, image, fidelity, ids)
        _swap(path)
    return dropped


def salvaged_header(path: Path) -> StoreHeader:
    """The header of a store, however damaged, if `drop_utterances` can make something of it."""
    return _salvage(path)[0].header


@contextmanager
def _repairing(path: Path) -> Iterator[None]:
    """Keep other repairs out: two of one store would swap each other's half away."""
    place = path.with_name(f".{path.name}.repair.lock")
    with store_lock(place, path, shared=False, wait=False) as handle:
        # Whoever held it a moment before has removed it, and a third may have made another.
        if not place.exists() or not os.path.samestat(os.fstat(handle), place.stat()):
            raise BusyOutputError(path)
        try:
            yield
        finally:
            place.unlink()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep writers of a store under construction out: the swap would take their shards away."""
    if store_state(path) != "partial":
        yield
        return
    with working_lock(working_folder(path), "writers.lock", shared=False, wait=False):
        yield


def _rebuild(
    path: Path, image: StoreImage, fidelity: dict[str, list[float]], ids: Collection[str]
) -> list[str]:
    """Write all but `ids` and what is damaged beside the store; returns what went."""
    rebuilt = _rebuilt(path)
    shutil.rmtree(rebuilt, ignore_errors=True)
    dropped: list[str] = []
    header = replace(image.header, id_bytes=Widths.of(image.header).id.itemsize)
    with StoreWriter(rebuilt, header, "repair", flush_bytes=1 << 23) as writer:
        for block in mapped_blocks(image):
            broken = broken_records(block, image.header)
            for position in range(len(block.rows)):
                name = block.names[position].decode(errors="replace")
                if position in broken or name in ids:
                    dropped.append(name)
                else:
                    writer.add_record(record_at(block, position), fidelity.get(name))
    return dropped


def record_at(block: Block, position: int) -> Record:
    """One record of a block."""
    start = block.ends[position - 1] if position else 0
    content = block.content[start : block.ends[position]].tobytes()
    first = COLUMN["frames"]
    lengths = tuple(block.rows[position, first : first + len(LENGTH_COLUMNS)].tolist())
    return Record(block.names[position].decode(), lengths, content)


def _salvage(path: Path) -> tuple[StoreImage, dict[str, list[float]]]:
    """A store as far as it can be read, and its utterances' fidelity while not summed up."""
    state = store_state(path)
    if state == "absent" or is_compact(path):
        raise StoreFormatError(
            path, "no mapped teacher store", "A compact store is copied again, not repaired"
        )
    if state == "partial":
        working = working_folder(path)
        header, shard_bytes = read_working_header(working)
        ledger = survey_ledger(working)
        return image_of_ledger(path, working, header, ledger, shard_bytes), ledger.fidelity
    return (salvage_zarr(path) if backend_of(path) == "zarr" else salvage_hdf5(path)), {}


def _rebuilt(path: Path) -> Path:
    return path.with_name(f".{path.name}.repair.zarr")


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.damaged")


def _swap(path: Path) -> None:
    """Put the rebuilt working folder in the place of the old store."""
    working = working_folder(path)
    shutil.rmtree(_old(path), ignore_errors=True)
    if working.exists():
        working.rename(_old(path))
    _rebuilt(path).rename(working)
    shutil.rmtree(_old(path), ignore_errors=True)
    if working != path:
        path.unlink(missing_ok=True)


def complete_swap(path: Path) -> bool:
    """Go on with a swap that was interrupted between its two renames; whether one was.

    Raises `BusyOutputError` while another process is between them.
    """
    if not _interrupted(path):
        return False
    with _repairing(path):
        interrupted = _interrupted(path)
        if interrupted:
            _rebuilt(path).rename(working_folder(path))
    return interrupted


def _interrupted(path: Path) -> bool:
    return _old(path).exists() and not working_folder(path).exists() and _rebuilt(path).exists()
