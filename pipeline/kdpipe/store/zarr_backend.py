"""A store as a Zarr v3 group whose files are raw arrays: any Zarr reader reads it, and we map it.

The metadata is written by hand: zarr-python is needed neither to write nor to read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from kdpipe.errors import StoreDamageError, StoreFormatError
from kdpipe.files import atomic_write_bytes, sync_folder
from kdpipe.store.blocks import Block, place_records
from kdpipe.store.image import (
    StoreImage,
    checked_json,
    index_from_bytes,
    is_digest,
    map_file,
    sealed_json,
)
from kdpipe.store.index import Index
from kdpipe.store.journal import shard_path
from kdpipe.store.layout import (
    CHUNK_BYTES,
    SHARD_BYTES,
    Widths,
    addresses,
    record_sizes,
)
from kdpipe.store.schema import StoreHeader, header_from_json, header_to_json

__all__ = [
    "Files",
    "array_metadata",
    "open_zarr",
    "parse_root",
    "read_root",
    "salvage_zarr",
    "seal_shards",
    "shard_index",
    "write_checked",
    "write_plain",
    "write_root",
    "write_zarr",
    "write_zarr_metadata",
]

ABSENT = 2**64 - 1
MAX_METADATA = 1 << 24
TABLE_FILE = "table/c/0/0"
INDEX_FILES = (TABLE_FILE, "ids/c/0", "lookup/c/0/0")

Files = dict[str, tuple[int, int]]


def seal_shards(working: Path, shards: Mapping[int, tuple[int, int]], shard_bytes: int) -> Files:
    """Make whole Zarr shards of what the journals acknowledge: cut, pad, append the index.

    `shards` gives bytes and CRC-32C of each. May be repeated. Returns size and CRC-32C by file.
    """
    files: Files = {}
    for number, (length, checksum) in sorted(shards.items()):
        ending = _shard_ending(length, shard_bytes)
        part = f"records/c/{number}"
        if not shard_path(working, number).is_file():
            raise StoreDamageError(working, part, "is gone")
        with shard_path(working, number).open("r+b") as handle:
            if handle.seek(0, os.SEEK_END) < length:
                raise StoreDamageError(working, part, f"is cut short of {length} bytes")
            handle.truncate(length)
            handle.seek(length)
            handle.write(ending)
            handle.flush()
            os.fsync(handle.fileno())
        total = length + len(ending)
        files[part] = (total, google_crc32c.extend(checksum, ending))
    for path in shard_path(working, 0).parent.iterdir():
        if f"records/c/{path.name}" not in files:
            path.unlink()
    return files


def write_zarr(
    folder: Path,
    header: StoreHeader,
    digest: str,
    index: Index,
    blocks: Iterable[Block],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a whole store of the `blocks` of another into an empty folder."""
    largest = record_sizes(index.table, Widths.of(header)).max(initial=0)
    shard_bytes = max(shard_bytes, -(-int(largest) // CHUNK_BYTES) * CHUNK_BYTES)
    placed = place_records(index, header, shard_bytes)
    shard_path(folder, 0).parent.mkdir(parents=True)
    shards = _write_shards(folder, placed, blocks, shard_bytes)
    files = seal_shards(folder, shards, shard_bytes)
    write_zarr_metadata(folder, header, digest, placed, files, shard_bytes)


def _write_shards(
    folder: Path, placed: Index, blocks: Iterable[Block], shard_bytes: int
) -> dict[int, tuple[int, int]]:
    shards: dict[int, tuple[int, int]] = {}
    for block in blocks:
        rows = placed.table[block.first : block.first + len(block.rows)]
        numbers = addresses(rows) // shard_bytes
        cuts = [*np.flatnonzero(np.diff(numbers)).tolist(), len(rows) - 1]
        start = 0
        for row in cuts:
            number, piece = int(numbers[row]), block.content[start : block.ends[row]]
            length, checksum = shards.get(number, (0, 0))
            with shard_path(folder, number).open("ab") as handle:
                handle.write(piece.data)
            shards[number] = (length + len(piece), google_crc32c.extend(checksum, piece))
            start = block.ends[row]
    return shards


def _shard_ending(length: int, shard_bytes: int) -> bytes:
    """Padding to a whole chunk, and the index of the shard."""
    used = -(-length // CHUNK_BYTES)
    entries = np.full((shard_bytes // CHUNK_BYTES, 2), ABSENT, "<u8")
    entries[:used, 0] = np.arange(used) * CHUNK_BYTES
    entries[:used, 1] = CHUNK_BYTES
    return bytes(used * CHUNK_BYTES - length) + shard_index(entries)


def shard_index(entries: NDArray[np.unsignedinteger[Any]]) -> bytes:
    """Offset and size of every inner chunk as a Zarr shard ends in, with their CRC-32C."""
    content = entries.astype("<u8").tobytes()
    return content + int(google_crc32c.value(content)).to_bytes(4, "little")


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
    shape = (count * shard_bytes,)
    copy = {
        "checksum": "00000000",
        "header": header_to_json(header),
        "digest": digest,
        "shard_bytes": shard_bytes,
    }
    records = {
        **array_metadata(shape, (shard_bytes,), np.dtype("u1"), inner=(CHUNK_BYTES,)),
        "attributes": {"kdpipe_store": copy},
    }
    text = sealed_json(_json(records))
    files["records/zarr.json"] = write_checked(folder / "records" / "zarr.json", text)
    for name in ("table", "ids", "lookup"):
        files.update(write_plain(folder, name, getattr(index, name)))
    sync_folder(folder)
    write_root(folder, header, digest, len(index), files, shard_bytes, "mapped")


def write_plain(
    folder: Path, name: str, array: NDArray[Any], zstd_level: int | None = None
) -> Files:
    """Write a whole array as one chunk, raw or compressed."""
    chunk = "c/" + "/".join("0" * array.ndim)
    chunk_shape = tuple(max(1, size) for size in array.shape)
    zstd = zstd_level is not None
    metadata = array_metadata(array.shape, chunk_shape, array.dtype, zstd=zstd)
    content = np.ascontiguousarray(array).tobytes()
    if zstd_level is not None:
        content = bytes(Zstd(zstd_level).encode(content))
    return {
        f"{name}/zarr.json": write_checked(folder / name / "zarr.json", _json(metadata)),
        f"{name}/{chunk}": write_checked(folder / name / chunk, content),
    }


def write_root(
    folder: Path,
    header: StoreHeader,
    digest: str,
    utterances: int,
    files: Files,
    shard_bytes: int,
    profile: Literal["mapped", "compact"],
) -> None:
    """Write the root metadata: from then on the store is whole."""
    store = {
        "checksum": "00000000",
        "header": header_to_json(header),
        "digest": digest,
        "utterances": utterances,
        "profile": profile,
        "shard_bytes": shard_bytes,
        "files": {name: list(entry) for name, entry in sorted(files.items())},
    }
    root = {"zarr_format": 3, "node_type": "group", "attributes": {"kdpipe_store": store}}
    atomic_write_bytes(folder / "zarr.json", sealed_json(_json(root)))


def write_checked(path: Path, content: bytes) -> tuple[int, int]:
    """Write a file and return its size and CRC-32C."""
    atomic_write_bytes(path, content)
    return len(content), google_crc32c.value(content)


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"


def array_metadata(
    shape: Sequence[int],
    chunk_shape: Sequence[int],
    kind: np.dtype[Any],
    inner: Sequence[int] | None = None,
    zstd: bool = False,
) -> dict[str, Any]:
    """Zarr v3 metadata of an array; with `inner`, `chunk_shape` is a shard of such chunks."""
    little: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    compressor = {"name": "zstd", "configuration": {"level": 0, "checksum": False}}
    codecs = [little, compressor] if zstd else [little]
    if inner is not None:
        sharding = {
            "chunk_shape": list(inner),
            "codecs": codecs,
            "index_codecs": [little, {"name": "crc32c"}],
            "index_location": "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": sharding}]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": kind.name,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": list(chunk_shape)},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": codecs,
        "attributes": {},
    }


def read_root(path: Path) -> tuple[dict[str, Any], StoreHeader, Files]:
    """The checked root metadata of a finished Zarr store: all of it, the header, the files.

    Raises `StoreDamageError` for a damaged one, `StoreFormatError` when it is no store's or
    lists what cannot be.
    """
    root = path / "zarr.json"
    if not root.is_file():
        raise StoreFormatError(path, "no finished Zarr store", "Check the path")
    if root.stat().st_size > MAX_METADATA:
        raise StoreFormatError(root, "too large for a store's metadata", "Check the path")
    ours = (path / "table").is_dir() and (path / "ids").is_dir()
    return parse_root(root.read_bytes(), str(path), ours)


def parse_root(text: bytes, where: str, ours: bool) -> tuple[dict[str, Any], StoreHeader, Files]:
    """`read_root` of a text; `ours` says that it must be a store's, even if it cannot be read."""
    store = _attributes(checked_json(text))
    if store is None and ours:
        raise StoreDamageError(where, "zarr.json", "its checksum does not fit")
    if store is None:
        raise StoreFormatError(where, "zarr.json is no teacher store's", "Check the path")
    header = header_from_json(store.get("header"), where)
    try:
        files = {str(name): (int(size), int(crc)) for name, (size, crc) in store["files"].items()}
        fits = int(store["shard_bytes"]) > 0 and all(size >= 0 for size, _ in files.values())
        fits = fits and all(map(_is_plain, files))
        fits = fits and is_digest(store["digest"]) and int(store["utterances"]) >= 0
        fits = fits and store["profile"] in ("mapped", "compact")
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise StoreFormatError(where, f"zarr.json: {error!r}", "Copy the store again") from error
    if not fits:
        raise StoreFormatError(where, "zarr.json lists no store's files", "Copy the store again")
    return store, header, files


def _is_plain(name: str) -> bool:
    """Whether a store may hold a file of that name: inside it, in letters any system takes."""
    inside = name[:1] != "/" and ".." not in name.split("/")
    return inside and name.isascii() and name.isprintable()


def _shard_number(name: str) -> int | None:
    """The number of the shard of `records` that a file is; None for another file."""
    folder, _, digits = name.rpartition("/")
    counted = digits.isascii() and digits.isdecimal() and len(digits) < 20
    return int(digits) if folder == "records/c" and counted else None


def _attributes(metadata: dict[str, Any] | None) -> dict[str, Any] | None:
    attributes = (metadata or {}).get("attributes")
    store = attributes.get("kdpipe_store") if isinstance(attributes, dict) else None
    return store if isinstance(store, dict) else None


def salvage_zarr(path: Path) -> StoreImage:
    """A mapped Zarr store as far as it can be read, unchecked: for repair.

    The header may come from its copy in `records/zarr.json`; shards may be of any size. Raises
    `StoreDamageError` when both headers or the index are beyond use.
    """
    try:
        store, header, _ = read_root(path)
    except StoreDamageError:
        repeated = path / "records" / "zarr.json"
        copy = _attributes(checked_json(repeated.read_bytes() if repeated.is_file() else b""))
        if copy is None:
            raise
        store, header = copy, header_from_json(copy.get("header"), str(path))
    try:
        index = index_from_bytes(path, *(map_file(path / name) for name in INDEX_FILES))
    except StoreFormatError as error:
        raise StoreDamageError(path, "table", "is beyond repair") from error
    numbered = {_shard_number(f"records/c/{p.name}"): p for p in path.glob("records/c/*")}
    records = {n: map_file(shard) for n, shard in numbered.items() if n is not None}
    stride = store.get("shard_bytes")
    if not isinstance(stride, int) or stride <= 0:
        raise StoreDamageError(path, "records/zarr.json", f"shards of {stride!r:.40} bytes")
    return StoreImage(path, "zarr", header, None, index, records, stride, 0)


def open_zarr(path: Path) -> StoreImage:
    """Map a finished Zarr store of the mapped profile."""
    store, header, files = read_root(path)
    if store["profile"] != "mapped" or not set(INDEX_FILES) <= set(files):
        raise StoreFormatError(path, "is not mapped", "Convert it to the mapped profile")
    index = index_from_bytes(path, *(map_file(path / name, files[name][0]) for name in INDEX_FILES))
    records = {
        number: map_file(path / name, size)
        for name, (size, _) in files.items()
        if (number := _shard_number(name)) is not None
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
