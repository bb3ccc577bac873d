"""A store as mapped memory: what every backend gives the reader."""

from __future__ import annotations

import errno
import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from kdpipe.errors import StoreFormatError
from kdpipe.store.index import Index
from kdpipe.store.layout import COLUMNS
from kdpipe.store.schema import StoreHeader

__all__ = [
    "NOT_THE_STORE",
    "StoreImage",
    "checked_json",
    "checksum_of",
    "index_from_bytes",
    "is_digest",
    "map_file",
    "release_pages",
    "sealed_json",
]

PIECE_BYTES = 1 << 24
CHECKSUM_FIELD = b'"checksum": "%08x"'
NOT_THE_STORE = {errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM}
"""Errors of which a store is not the cause, whatever could not be read of it."""


@dataclass(frozen=True)
class StoreImage:
    """`records` holds, by number, shards of `stride` bytes: address // stride is the number.

    `digest` is None while the store is under construction.
    """

    path: Path
    backend: str
    header: StoreHeader
    digest: str | None
    index: Index
    records: Mapping[int, NDArray[np.uint8]]
    stride: int
    total_bytes: int

    def part(self, address: int) -> str:
        """The name of the part that holds an address."""
        return "records" if self.backend == "hdf5" else f"records/c/{address // self.stride}"


def map_file(path: Path, expected: int | None = None) -> NDArray[np.uint8]:
    """Map a file read-only; with `expected`, its size must be that.

    Raises `StoreFormatError` when it is absent or of another size. What is no fault of the store,
    such as too many open files or missing rights, stays an `OSError`.
    """
    try:
        with path.open("rb") as handle:
            size = handle.seek(0, 2)
            if expected is not None and size != expected:
                raise StoreFormatError(
                    path, f"has {size} bytes, not {expected}", "Copy or dump the store again"
                )
            if not size:
                return np.zeros(0, np.uint8)
            mapped = mmap.mmap(handle.fileno(), size, access=mmap.ACCESS_READ)
    except OSError as error:
        if error.errno in NOT_THE_STORE:
            error.filename = str(path)  # Mapping does not say it.
            raise
        raise StoreFormatError(
            path, f"cannot be read ({error.strerror})", "Copy or dump the store again"
        ) from error
    return np.frombuffer(mapped, np.uint8)


def release_pages(mapped: NDArray[np.uint8]) -> None:
    """Let go of a mapped file's pages; they come back from the page cache when they are read.

    For passes over whole stores, whose resident memory would otherwise grow with them.
    """
    view: Any = mapped
    while isinstance(view, np.ndarray):
        view = view.base
    file = view.obj if isinstance(view, memoryview) else view
    if isinstance(file, mmap.mmap):
        file.madvise(mmap.MADV_DONTNEED)


def checksum_of(mapped: NDArray[np.uint8]) -> int:
    """CRC-32C of mapped bytes, read piece by piece without keeping their pages."""
    checksum = 0
    for start in range(0, len(mapped), PIECE_BYTES):
        checksum = google_crc32c.extend(checksum, mapped[start : start + PIECE_BYTES])
        release_pages(mapped)
    return checksum


def index_from_bytes(
    path: Path, table: NDArray[np.uint8], ids: NDArray[np.uint8], lookup: NDArray[np.uint8]
) -> Index:
    """View raw arrays as an index; sizes that contradict each other are a `StoreFormatError`."""
    count, rest = divmod(len(table), 4 * len(COLUMNS))
    if rest or len(lookup) != 16 * count:
        raise StoreFormatError(path, "table and lookup differ in length", "Copy the store again")
    pairs = lookup.view("<u8").reshape(2, count)
    # Not aligned (in HDF5 files of older versions), each search would copy it.
    pairs = pairs if pairs.flags.aligned else pairs.copy()
    return Index(table.view("<u4").reshape(count, len(COLUMNS)), ids, pairs)


def is_digest(value: object) -> bool:
    """Whether `value` is a SHA-256 in hex: safe in a file name."""
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def sealed_json(text: bytes) -> bytes:
    """Fill in the `"checksum": "00000000"` of a JSON text: CRC-32C of the text as it stands."""
    blank = CHECKSUM_FIELD % 0
    return text.replace(blank, CHECKSUM_FIELD % google_crc32c.value(text), 1)


def checked_json(text: bytes) -> dict[str, Any] | None:
    """The object in a sealed JSON text; None when it is damaged or no object."""
    before, field, after = text.partition(b'"checksum": "')
    if not field or sealed_json(before + CHECKSUM_FIELD % 0 + after[9:]) != text:
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
