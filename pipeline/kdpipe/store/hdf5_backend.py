"""A store as one HDF5 file of four contiguous datasets, which are read by mapping the file.

The user block in front of the HDF5 data repeats the header and says where each dataset lies and
what it checks to, so reading needs no HDF5 library and damage never reaches one.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import h5py
import numpy as np
from numpy.typing import NDArray

from kdpipe.errors import StoreDamageError, StoreFormatError
from kdpipe.files import sync_folder
from kdpipe.store.blocks import Block, place_records
from kdpipe.store.image import (
    NOT_THE_STORE,
    StoreImage,
    checked_json,
    index_from_bytes,
    is_digest,
    map_file,
    sealed_json,
)
from kdpipe.store.index import Index
from kdpipe.store.layout import Widths, record_sizes
from kdpipe.store.schema import StoreHeader, header_from_json, header_to_json

__all__ = [
    "DATASETS",
    "Extents",
    "open_hdf5",
    "parse_user_block",
    "read_user_block",
    "salvage_hdf5",
    "structure_checksum",
    "write_hdf5",
]

DATASETS = ("records", "table", "ids", "lookup")
MAGIC = b"kdpipe-store "
MAX_USER_BLOCK = 1 << 24
SPARE_BYTES = 2048
ONE_PART = 2**62
"""No address reaches it: all records of an HDF5 store are one part."""

Extents = dict[str, tuple[int, int, int]]


def write_hdf5(
    path: Path,
    header: StoreHeader,
    digest: str,
    index: Index,
    blocks: Iterable[Block],
) -> None:
    """Write a whole store of the `blocks` of another, in order; records are laid end to end.

    The file appears under its name only when it is whole.
    """
    placed = place_records(index, header, ONE_PART)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A new name at every attempt: after a failed write the HDF5 library may not let go of the old.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    store = {
        "checksum": "00000000",
        "header": header_to_json(header),
        "digest": digest,
        "utterances": len(index),
    }
    room = len(json.dumps(store).encode()) + SPARE_BYTES
    block = max(512, 1 << (room - 1).bit_length())
    try:
        extents = _lay_out(temporary, block, store, placed)
        filled = _fill(temporary, extents, placed, blocks)
        _write_user_block(temporary, block, store, filled)
        temporary.replace(path)
    except RuntimeError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"HDF5: {error}") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _lay_out(
    path: Path, block: int, store: Mapping[str, Any], index: Index
) -> dict[str, tuple[int, int]]:
    """Make the file with room for every dataset; where each begins, and its bytes."""
    widths = Widths.of(header_from_json(store["header"], str(path)))
    shapes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        "records": ((int(record_sizes(index.table, widths).sum()),), np.dtype("u1")),
        "table": (index.table.shape, np.dtype("<u4")),
        "ids": (index.ids.shape, np.dtype("u1")),
        "lookup": (index.lookup.shape, np.dtype("<u8")),
    }
    aligned = {"alignment_threshold": 1, "alignment_interval": 8}  # As readers view them.
    with h5py.File(path, "w", userblock_size=block, **aligned) as file:
        text = json.dumps(store, ensure_ascii=False).encode()
        file.attrs["kdpipe_store"] = sealed_json(text).decode()
        extents = {}
        for name, (shape, kind) in shapes.items():
            place = _room(file, name, shape, kind)
            extents[name] = (place, math.prod(shape) * kind.itemsize)
        return extents


def _room(file: h5py.File, name: str, shape: tuple[int, ...], kind: np.dtype[Any]) -> int:
    """Allocate a contiguous dataset without writing to it; where it begins (0 when empty)."""
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_layout(h5py.h5d.CONTIGUOUS)
    settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    settings.set_obj_track_times(False)
    dataset = h5py.h5d.create(
        file.id,
        name.encode(),
        h5py.h5t.py_create(kind),
        h5py.h5s.create_simple(shape),
        dcpl=settings,
    )
    return dataset.get_offset() or 0


def _fill(
    path: Path, places: Mapping[str, tuple[int, int]], index: Index, blocks: Iterable[Block]
) -> Extents:
    """Write the data where the datasets lie, past the HDF5 library."""
    arrays = {"table": index.table, "ids": index.ids, "lookup": index.lookup}
    checksums = {}
    with path.open("r+b") as handle:
        for name, array in arrays.items():
            content = np.ascontiguousarray(array).tobytes()
            handle.seek(places[name][0])
            handle.write(content)
            checksums[name] = google_crc32c.value(content)
        handle.seek(places["records"][0])
        checksum = 0
        for part in blocks:
            handle.write(part.content.data)
            checksum = google_crc32c.extend(checksum, part.content)
        checksums["records"] = checksum
    return {name: (*places[name], checksums[name]) for name in DATASETS}


def _write_user_block(path: Path, block: int, store: Mapping[str, Any], extents: Extents) -> None:
    content = {
        **store,
        "bytes": path.stat().st_size,
        "datasets": {name: list(extents[name]) for name in DATASETS},
        "structure_crc32c": structure_checksum(map_file(path), block, extents),
    }
    text = sealed_json(json.dumps(content, ensure_ascii=False).encode())
    first = b"%s%08d\n" % (MAGIC, block)
    with path.open("r+b") as handle:
        handle.write((first + text).ljust(block - 1) + b"\n")
        handle.flush()
        os.fsync(handle.fileno())


def structure_checksum(file: NDArray[np.uint8], block: int, extents: Extents) -> int:
    """CRC-32C of all bytes after the user block that belong to no dataset."""
    checksum, position = 0, block
    for offset, size, _ in sorted(extents.values()):
        if size:
            checksum = google_crc32c.extend(checksum, file[position:offset])
            position = offset + size
    total: int = google_crc32c.extend(checksum, file[position:])
    return total


def read_user_block(path: Path) -> tuple[dict[str, Any], StoreHeader, int, Extents]:
    """The checked user block: its content, the header, its size, and the datasets' extents.

    Raises `StoreDamageError` for a damaged one, `StoreFormatError` when it is no store's or lists
    what cannot be.
    """
    try:
        with path.open("rb") as handle:
            return parse_user_block(handle.read, str(path))
    except OSError as error:
        if error.errno in NOT_THE_STORE:
            raise
        raise StoreFormatError(
            path, f"cannot be read ({error.strerror})", "Check the path"
        ) from error


def parse_user_block(
    read: Callable[[int], bytes], where: str
) -> tuple[dict[str, Any], StoreHeader, int, Extents]:
    """`read_user_block` through `read(bytes)` from the beginning of a file."""
    block, text = _user_block_text(read, where)
    store = checked_json(text)
    if store is None:
        raise StoreDamageError(where, "user block", "its checksum does not fit")
    header = header_from_json(store.get("header"), where)
    try:
        extents = {
            name: (int(offset), int(size), int(crc))
            for name, (offset, size, crc) in store["datasets"].items()
        }
        fits = set(extents) == set(DATASETS) and is_digest(store["digest"])
        fits = fits and _disjoint(extents, block, int(store["bytes"]))
        fits = fits and isinstance(store["structure_crc32c"], int)
    except (ValueError, OverflowError, KeyError, TypeError, AttributeError) as error:
        raise StoreFormatError(where, f"user block: {error!r}", "Copy the store again") from error
    if not fits:
        raise StoreFormatError(where, "user block lists no store's data", "Copy the store again")
    return store, header, block, extents


def _user_block_text(read: Callable[[int], bytes], where: str) -> tuple[int, bytes]:
    first = read(len(MAGIC) + 9)
    size = _block_size(where, first)
    rest = read(size - len(first))
    text = rest.rstrip(b" \n")
    if len(rest) != size - len(first) or rest != text.ljust(len(rest) - 1) + b"\n":
        raise StoreDamageError(where, "user block", "cut short or overwritten")
    return size, text


def _block_size(where: str, first: bytes) -> int:
    """The size of the user block from its first line; a slip of a few bytes is damage."""
    digits = first[len(MAGIC) : -1]
    if first.startswith(MAGIC) and digits.isdigit() and first[-1:] == b"\n":
        size = int(digits)
        if size <= MAX_USER_BLOCK and size >= 512 and size & (size - 1) == 0:
            return size
    wrong = sum(a != b for a, b in zip(first, MAGIC, strict=False))
    if len(first) > len(MAGIC) and wrong < len(MAGIC) // 3:
        raise StoreDamageError(where, "user block", "its first line is damaged")
    raise StoreFormatError(where, "no teacher store", "Check the path")


def _disjoint(extents: Extents, start: int, end: int) -> bool:
    for offset, size, _ in sorted(extents.values()):
        if size and (offset < start or size < 0 or offset + size > end):
            return False
        start = offset + size if size else start
    return True


def open_hdf5(path: Path, check_structure: bool = True) -> StoreImage:
    """Map a finished HDF5 store; what belongs to no dataset is checked on request."""
    store, header, block, extents = read_user_block(path)
    file = map_file(path, int(store["bytes"]))
    if check_structure and structure_checksum(file, block, extents) != store["structure_crc32c"]:
        raise StoreDamageError(path, "HDF5 structure", "its checksum does not fit")
    views = {name: file[offset : offset + size] for name, (offset, size, _) in extents.items()}
    index = index_from_bytes(path, views["table"], views["ids"], views["lookup"])
    records = {0: views["records"]}
    return StoreImage(path, "hdf5", header, store["digest"], index, records, ONE_PART, len(file))


def salvage_hdf5(path: Path) -> StoreImage:
    """An HDF5 store as far as it can be read, unchecked: for repair.

    With a damaged user block, header and datasets are looked for in the HDF5 data. Raises
    `StoreDamageError` when neither can be used.
    """
    try:
        return open_hdf5(path, check_structure=False)
    except StoreDamageError as damage:
        try:
            with h5py.File(path, "r") as file:
                store = checked_json(str(file.attrs["kdpipe_store"]).encode())
                views = {
                    name: (file[name].id.get_offset() or 0, file[name].id.get_storage_size())
                    for name in DATASETS
                }
        except (OSError, KeyError, RuntimeError, ValueError):
            raise damage from None
        if store is None:
            raise
    header = header_from_json(store.get("header"), str(path))
    content = map_file(path)
    parts = {name: content[offset : offset + size] for name, (offset, size) in views.items()}
    index = index_from_bytes(path, parts["table"], parts["ids"], parts["lookup"])
    return StoreImage(path, "hdf5", header, None, index, {0: parts["records"]}, ONE_PART, 0)
