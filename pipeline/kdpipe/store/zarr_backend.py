"""A store as a Zarr v3 group whose files are raw arrays: any Zarr reader reads it, and we map it.

The metadata is written by hand: zarr-python is needed neither to write nor to read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from kdpipe.errors import StoreFormatError
from kdpipe.files import atomic_write_bytes, sync_folder
from kdpipe.store.image import (
    StoreImage,
    index_from_bytes,
    map_file,
    sealed_json,
    unsealed_json,
)
from kdpipe.store.index import Index
from kdpipe.store.journal import shard_path
from kdpipe.store.layout import CHUNK_BYTES
from kdpipe.store.schema import StoreHeader, header_from_json, header_to_json

__all__ = ["open_zarr", "read_root", "seal_shards", "write_zarr_metadata"]

ABSENT = 2**64 - 1
MAX_METADATA = 1 << 24
INDEX_FILES = ("table/c/0/0", "ids/c/0", "lookup/c/0/0")

Files = dict[str, tuple[int, int]]


def seal_shards(working: Path, shards: Mapping[int, tuple[int, int]], shard_bytes: int) -> Files:
    """Make whole Zarr shards of what the journals acknowledge: cut, pad, append the index.

    `shards` gives bytes and CRC-32C of each. May be repeated. Returns size and CRC-32C by file.
    """
    files: Files = {}
    for number, (length, checksum) in sorted(shards.items()):
        ending = _shard_ending(length, shard_bytes)
        with shard_path(working, number).open("r+b") as handle:
            handle.truncate(length)
            handle.seek(length)
            handle.write(ending)
            handle.flush()
            os.fsync(handle.fileno())
        total = length + len(ending)
        files[f"records/c/{number}"] = (total, google_crc32c.extend(checksum, ending))
    for path in shard_path(working, 0).parent.iterdir():
        if f"records/c/{path.name}" not in files:
            path.unlink()
    return files


def _shard_ending(length: int, shard_bytes: int) -> bytes:
    """Padding to a whole chunk, then offset and size of every chunk, then their CRC-32C."""
    used = -(-length // CHUNK_BYTES)
    entries = np.full((shard_bytes // CHUNK_BYTES, 2), ABSENT, "<u8")
    entries[:used, 0] = np.arange(used) * CHUNK_BYTES
    entries[:used, 1] = CHUNK_BYTES
    content = entries.tobytes()
    checksum = int(google_crc32c.value(content)).to_bytes(4, "little")
    return bytes(used * CHUNK_BYTES - length) + content + checksum


def write_zarr_metadata(
    folder: Path,
    header: StoreHeader,
    digest: str,
    index: Index,
    shards: Files,
    shard_bytes: int,
) -> None:
    """Write the index arrays and all metadata; the root's comes last and completes the store."""
    files = dict(shards)
    count = max((int(name.rpartition("/")[2]) for name in shards), default=-1) + 1
    arrays: dict[str, tuple[dict[str, Any], NDArray[Any] | None]] = {
        "records": (_records_metadata(count * shard_bytes, shard_bytes), None),
        "table": (_array_metadata(index.table, "uint32"), index.table),
        "ids": (_array_metadata(index.ids, "uint8"), index.ids),
        "lookup": (_array_metadata(index.lookup, "uint64"), index.lookup),
    }
    for name, (metadata, array) in arrays.items():
        files[f"{name}/zarr.json"] = _write(folder / name / "zarr.json", _json(metadata))
        if array is not None:
            chunk = "c/" + "/".join("0" * array.ndim)
            files[f"{name}/{chunk}"] = _write(folder / name / chunk, array.tobytes())
    sync_folder(folder)
    atomic_write_bytes(folder / "zarr.json", _root(header, digest, len(index), files, shard_bytes))


def _root(
    header: StoreHeader, digest: str, utterances: int, files: Files, shard_bytes: int
) -> bytes:
    store = {
        "checksum": "00000000",
        "header": header_to_json(header),
        "digest": digest,
        "utterances": utterances,
        "shard_bytes": shard_bytes,
        "files": {name: list(entry) for name, entry in sorted(files.items())},
    }
    root = {"zarr_format": 3, "node_type": "group", "attributes": {"kdpipe_store": store}}
    return sealed_json(_json(root))


def _write(path: Path, content: bytes) -> tuple[int, int]:
    atomic_write_bytes(path, content)
    return len(content), google_crc32c.value(content)


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"


def _array_metadata(array: NDArray[Any], data_type: str) -> dict[str, Any]:
    chunk_shape = [max(1, size) for size in array.shape]
    codec = {"name": "bytes", "configuration": {"endian": "little"}}
    return _metadata(list(array.shape), chunk_shape, data_type, codec)


def _records_metadata(length: int, shard_bytes: int) -> dict[str, Any]:
    raw = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [CHUNK_BYTES],
            "codecs": [raw],
            "index_codecs": [raw, {"name": "crc32c"}],
            "index_location": "end",
        },
    }
    return _metadata([length], [shard_bytes], "uint8", sharding)


def _metadata(
    shape: list[int], chunk_shape: list[int], data_type: str, codec: dict[str, Any]
) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk_shape}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [codec],
        "attributes": {},
    }


def read_root(path: Path) -> tuple[dict[str, Any], StoreHeader, Files]:
    """The checked root metadata of a finished Zarr store: all of it, the header, the files.

    Raises `StoreFormatError` when it is no store, damaged, or lists what cannot be.
    """
    store = _root_store(path)
    header = header_from_json(store.get("header"), str(path))
    try:
        files = {str(name): (int(size), int(crc)) for name, (size, crc) in store["files"].items()}
        fits = int(store["shard_bytes"]) > 0 and all(size >= 0 for size, _ in files.values())
        fits = fits and all(".." not in name.split("/") for name in files)
        fits = fits and set(INDEX_FILES) <= set(files) and isinstance(store["digest"], str)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreFormatError(path, f"zarr.json: {error!r}", "Copy the store again") from error
    if not fits:
        raise StoreFormatError(path, "zarr.json lists no store's files", "Copy the store again")
    return store, header, files


def _root_store(path: Path) -> dict[str, Any]:
    root = path / "zarr.json"
    if not root.is_file():
        raise StoreFormatError(path, "no finished Zarr store", "Check the path")
    if root.stat().st_size > MAX_METADATA:
        raise StoreFormatError(root, "too large for a store's metadata", "Check the path")
    text = root.read_bytes()
    try:
        store = json.loads(text)["attributes"]["kdpipe_store"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreFormatError(
            path, "zarr.json is damaged or no teacher store's", "Copy the store again"
        ) from error
    if not unsealed_json(text) or not isinstance(store, dict):
        raise StoreFormatError(
            path, "zarr.json is damaged (its checksum does not fit)", "Copy the store again"
        )
    return store


def open_zarr(path: Path) -> StoreImage:
    """Map a finished Zarr store."""
    store, header, files = read_root(path)
    index = index_from_bytes(path, *(map_file(path / name, files[name][0]) for name in INDEX_FILES))
    shards = [name for name in files if name.startswith("records/c/")]
    records = {
        int(name.removeprefix("records/c/")): map_file(path / name, files[name][0])
        for name in shards
    }
    return StoreImage(
        path,
        "zarr",
        header,
        store["digest"],
        index,
        records,
        int(store["shard_bytes"]),
        sum(size for size, _ in files.values()) + (path / "zarr.json").stat().st_size,
    )
