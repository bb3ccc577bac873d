"""Where a store lives, by the suffix of its name, and how far it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from kdpipe.errors import StoreDamageError, StoreFormatError
from kdpipe.store.journal import journal_folder

__all__ = [
    "Backend",
    "backend_of",
    "is_compact",
    "store_state",
    "unless_finished",
    "working_folder",
]

Answer = TypeVar("Answer")
Backend = Literal["zarr", "hdf5"]
SUFFIXES: dict[str, Backend] = {".zarr": "zarr", ".h5": "hdf5", ".hdf5": "hdf5"}


def backend_of(path: Path) -> Backend:
    """Zarr or HDF5 by suffix; another suffix is a `StoreFormatError`."""
    if path.suffix not in SUFFIXES:
        raise StoreFormatError(
            path, "a store's name ends in .zarr or .h5", "Give the store such a name"
        )
    return SUFFIXES[path.suffix]


def working_folder(path: Path) -> Path:
    """Where parts are while writing: the Zarr store itself, or a folder beside the HDF5 file."""
    return path if backend_of(path) == "zarr" else path.with_name(f"{path.name}.parts")


def store_state(path: Path) -> Literal["absent", "partial", "complete"]:
    """Whether a store is finished, under construction, or not there (nor anything else).

    Raises `StoreFormatError` when something else is in its place.
    """
    complete = path / "zarr.json" if backend_of(path) == "zarr" else path
    if complete.is_file():
        return "complete"
    working = working_folder(path)
    if (journal_folder(working) / "header.json").is_file():
        return "partial"
    for place in {path, working}:
        foreign = place.exists() and not _is_bare(place)
        if foreign:
            raise StoreFormatError(place, "exists and is no teacher store", "Give another path")
    return "absent"


def unless_finished(path: Path, read: Callable[[], Answer]) -> Answer | None:
    """What `read` makes of a store under construction; None when it was finished meanwhile.

    Finishing takes journals and shards away, so that what was read beside it means nothing,
    whether it is an answer or an error.
    """
    try:
        answer = read()
    except (FileNotFoundError, StoreDamageError, StoreFormatError):
        if store_state(path) != "complete":
            raise
        return None
    return None if store_state(path) == "complete" else answer


def is_compact(path: Path) -> bool:
    """Whether a finished Zarr store is of the compact profile: it has no `lookup`."""
    finished = backend_of(path) == "zarr" and (path / "zarr.json").is_file()
    return finished and not (path / "lookup").exists()


def _is_bare(place: Path) -> bool:
    """Whether a folder holds no more than a writer has that was killed before its header."""
    if not place.is_dir() or {entry.name for entry in place.iterdir()} - {"journal", "records"}:
        return False
    return not any((place / "journal").glob("*.jsonl"))
