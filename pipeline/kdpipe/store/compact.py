"""The compact profile: the same records taken apart into compressed streams, for transport.

A Zarr group again: one array per section of a record, over all utterances in order of ids. Class
and token ids are one stream of integers; everything else is cut into byte planes, which compress
better. `table` and `ids` are those of the expanded store.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from kdpipe.errors import StoreFormatError
from kdpipe.store.blocks import Block, row_groups
from kdpipe.store.image import map_file
from kdpipe.store.index import Index, cut_ids, hashes_of, ids_between, lookup_of
from kdpipe.store.layout import (
    COLUMN,
    COLUMNS,
    SECTIONS,
    SHARD_BYTES,
    Widths,
    record_sizes,
    section_sizes,
)
from kdpipe.store.schema import StoreHeader
from kdpipe.store.zarr_backend import (
    TABLE_FILE,
    Files,
    array_metadata,
    read_root,
    shard_index,
    write_checked,
    write_plain,
    write_root,
)

__all__ = [
    "LEVEL",
    "CompactImage",
    "compact_blocks",
    "open_compact",
    "unpack_table",
    "write_compact",
]

PLANE_BYTES = 1 << 20
"""Raw bytes of one chunk of a stream."""

LEVEL = 19
"""Of zstd: slow to write, as quick to read as any."""

MAX_RATIOS = {"table": 100, "ids": 1000}
"""How far an array of the index can be compressed: 4 of the 48 bytes of a row are a checksum."""

MAX_RECORD = 1 << 28
"""Bytes of a record; a shard of the mapped profile, which holds it whole, is smaller."""

MAX_RATIO, SLACK_BYTES = 1000, 1 << 24
"""Records of more than this many times the bytes of all streams, and some, are a bomb."""

ID_SECTIONS = ("frame_ids", "token_ids", "reference", "middles")


@dataclass(frozen=True)
class StreamShape:
    """`planes` rows of elements of `kind`; a section's item is one element of every plane."""

    planes: int
    kind: np.dtype[Any]

    @property
    def item_bytes(self) -> int:
        """Bytes of one item in a record."""
        return self.planes * self.kind.itemsize

    @property
    def items(self) -> int:
        """Items in a chunk."""
        return PLANE_BYTES // self.kind.itemsize

    @property
    def chunk_bytes(self) -> int:
        """Bytes of records that fill one chunk of every plane."""
        return self.planes * PLANE_BYTES


@dataclass(frozen=True)
class CompactImage:
    """A compact store: its index as the expanded store will have it, and its stream files."""

    path: Path
    header: StoreHeader
    digest: str
    index: Index
    streams: dict[str, NDArray[np.uint8]]
    total_bytes: int


def stream_shapes(header: StoreHeader) -> dict[str, StreamShape]:
    """How each section is laid out as a stream."""
    widths = Widths.of(header)
    item = {"spans": 6, "scores": 16}
    for stream in ("frame", "token"):
        item[f"{stream}_rows"] = widths.row.itemsize
        item[f"{stream}_codes"] = widths.code.itemsize
        item[f"{stream}_tails"] = widths.tail.itemsize
    shapes = {name: StreamShape(planes, np.dtype("u1")) for name, planes in item.items()}
    shapes.update({name: StreamShape(1, widths.id) for name in ID_SECTIONS})
    return {name: shapes[name] for name in SECTIONS}


def write_compact(
    folder: Path,
    header: StoreHeader,
    digest: str,
    index: Index,
    blocks: Iterable[Block],
    level: int = LEVEL,
) -> None:
    """Write the `blocks` of a store into an empty folder as compressed streams.

    Raises `StoreFormatError` for a record that could not be read again.
    """
    widths = Widths.of(header)
    if int(record_sizes(index.table, widths).max(initial=0)) > MAX_RECORD:
        problem = f"has a record of more than {MAX_RECORD} bytes"
        raise StoreFormatError(folder, problem, "Keep it in the mapped profile")
    shapes = stream_shapes(header)
    files: Files = {}
    with ExitStack() as open_files:
        streams = [
            open_files.enter_context(closing(_StreamWriter(folder, name, shapes[name], level)))
            for name in SECTIONS
        ]
        for block in blocks:
            for stream, pieces in zip(streams, _sections(block, widths), strict=True):
                stream.append(pieces)
        for stream in streams:
            files.update(stream.finish())
    table = np.array(index.table)
    table[:, : COLUMN["frames"]] = 0
    files.update(write_plain(folder, "table", table, level))
    files.update(write_plain(folder, "ids", index.ids, level))
    write_root(folder, header, digest, len(index), files, SHARD_BYTES, "compact")


def _sections(block: Block, widths: Widths) -> Iterator[list[NDArray[np.uint8]]]:
    """Of every section in turn, its pieces in all records of a block."""
    ends = np.cumsum(section_sizes(block.rows, widths), axis=1).T.tolist()
    for starts, stops in itertools.pairwise([[0] * len(block.ends), *ends]):
        records = zip(block.records(), starts, stops, strict=True)
        yield [record[start:stop] for record, start, stop in records]


class _StreamWriter:
    """One stream as one Zarr shard, written as it comes, its index at the end."""

    def __init__(self, folder: Path, name: str, shape: StreamShape, level: int) -> None:
        self.folder = folder / name
        self.shape = shape
        self.codec = Zstd(level)
        self.pending: list[NDArray[np.uint8]] = []
        self.pending_bytes = self.total = self.length = self.checksum = 0
        self.entries: list[tuple[int, int]] = []
        self.path = self.folder / "c" / "0" / "0"
        self.path.parent.mkdir(parents=True)
        self.handle = self.path.open("wb")

    def append(self, pieces: Sequence[NDArray[np.uint8]]) -> None:
        """Take items; whole chunks of them are written."""
        joined = np.concatenate(pieces)
        self.pending.append(joined)
        self.pending_bytes += len(joined)
        self.total += len(joined)
        if self.pending_bytes >= self.shape.chunk_bytes:
            joined = np.concatenate(self.pending)
            whole = len(joined) - len(joined) % self.shape.chunk_bytes
            for start in range(0, whole, self.shape.chunk_bytes):
                self._write_chunks(joined[start : start + self.shape.chunk_bytes])
            self.pending, self.pending_bytes = [joined[whole:].copy()], len(joined) - whole

    def finish(self) -> Files:
        """Write what is left, the shard's index and the array's metadata."""
        if self.pending_bytes:
            joined = np.concatenate(self.pending)
            self._write_chunks(np.pad(joined, (0, self.shape.chunk_bytes - len(joined))))
        entries = np.asarray(self.entries, "<u8").reshape(-1, self.shape.planes, 2)
        if len(entries):
            self._write(shard_index(entries.transpose(1, 0, 2)))
        self.handle.flush()
        os.fsync(self.handle.fileno())
        planes, items = self.shape.planes, self.shape.items
        metadata = array_metadata(
            (planes, self.total // self.shape.item_bytes),
            (planes, max(1, len(entries)) * items),
            self.shape.kind,
            inner=(1, items),
            zstd=True,
        )
        text = json.dumps(metadata, indent=1).encode() + b"\n"
        files = {f"{self.folder.name}/zarr.json": write_checked(self.folder / "zarr.json", text)}
        if len(entries):
            return {**files, f"{self.folder.name}/c/0/0": (self.length, self.checksum)}
        self.path.unlink()
        return files

    def close(self) -> None:
        """Close the file."""
        self.handle.close()

    def _write_chunks(self, items: NDArray[np.uint8]) -> None:
        width = self.shape.kind.itemsize
        for plane in items.reshape(-1, self.shape.planes, width).transpose(1, 0, 2):
            compressed = bytes(self.codec.encode(np.ascontiguousarray(plane)))
            self.entries.append((self.length, len(compressed)))
            self._write(compressed)

    def _write(self, content: bytes) -> None:
        self.handle.write(content)
        self.checksum = google_crc32c.extend(self.checksum, content)
        self.length += len(content)


def open_compact(path: Path) -> CompactImage:
    """Map a compact store and unpack its index.

    Raises `StoreFormatError` when its pieces do not fit each other.
    """
    store, header, files = read_root(path)
    count = int(store["utterances"])
    try:
        table = _plain(path, TABLE_FILE, files, 4 * len(COLUMNS) * count)
        rows = table.view("<u4").reshape(count, len(COLUMNS))
        ends = rows[:, COLUMN["id_end"]].tolist()
        if any(end <= begin for begin, end in pairwise([0, *ends])):
            raise ValueError("ids that end before they begin")
        ids = _plain(path, "ids/c/0", files, ends[-1] if ends else 0)
        _require_possible(rows, Widths.of(header))
    except (KeyError, ValueError, RuntimeError) as error:
        raise StoreFormatError(path, f"its index: {error}", "Copy the store again") from error
    streams = {
        name: map_file(path / name / "c/0/0", files[f"{name}/c/0/0"][0])
        for name in SECTIONS
        if f"{name}/c/0/0" in files
    }
    total = sum(size for size, _ in files.values()) + (path / "zarr.json").stat().st_size
    index = Index(rows, ids, lookup_of(hashes_of(cut_ids(ends, ids))))
    return CompactImage(path, header, store["digest"], index, streams, total)


def _require_possible(table: NDArray[np.uint32], widths: Widths) -> None:
    for _, rows in row_groups(table, widths):
        sizes = section_sizes(rows, widths)
        if bool((sizes < 0).any()):
            raise ValueError("lengths that contradict each other")
        if int(sizes.sum(axis=1).max()) > MAX_RECORD:
            raise ValueError(f"a record of more than {MAX_RECORD} bytes")


def _plain(path: Path, name: str, files: Files, size: int) -> NDArray[np.uint8]:
    """Decompress a whole array; the claimed size must not be beyond what it can come from."""
    if not size:
        return np.zeros(0, np.uint8)
    return _unpack_whole(name, map_file(path / name, files[name][0]), size)


def _unpack_whole(name: str, compressed: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    if size > len(compressed) * MAX_RATIOS[name.partition("/")[0]]:
        raise ValueError(f"{name} claims {size} bytes")
    return _unpack(compressed, size)


def unpack_table(where: str, content: bytes, utterances: int) -> bytes:
    """The bytes of the table of a compact store, given its file `table/c/0/0`.

    Raises `StoreFormatError` naming the store as `where` when they cannot be.
    """
    compressed = np.frombuffer(content, np.uint8)
    try:
        table = _unpack_whole(TABLE_FILE, compressed, 4 * len(COLUMNS) * utterances)
    except (ValueError, RuntimeError) as error:
        raise StoreFormatError(where, f"its index: {error}", "Copy the store again") from error
    return table.tobytes()


def _unpack(compressed: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    out = np.empty(size, np.uint8)
    Zstd().decode(np.ascontiguousarray(compressed), out)
    return out


def compact_blocks(image: CompactImage) -> Iterator[Block]:
    """All records of a compact store put together again.

    Raises `StoreFormatError` when a stream is damaged or too short.
    """
    widths = Widths.of(image.header)
    try:
        readers = _stream_readers(image, widths)
        for first, rows in row_groups(image.index.table, widths):
            sizes = section_sizes(rows, widths)
            sections = [
                reader.pieces(np.cumsum(column).tolist())
                for reader, column in zip(readers, sizes.T, strict=True)
            ]
            joined = b"".join(itertools.chain.from_iterable(zip(*sections, strict=True)))
            names = ids_between(image.index, first, first + len(rows))
            ends = np.cumsum(sizes.sum(axis=1)).tolist()
            yield Block(first, rows, names, np.frombuffer(joined, np.uint8), ends)
    except (ValueError, RuntimeError) as error:
        raise StoreFormatError(
            image.path, f"a stream is damaged ({error})", "Copy the store again"
        ) from error


def _stream_readers(image: CompactImage, widths: Widths) -> list[_StreamReader]:
    shapes = stream_shapes(image.header)
    totals = np.zeros(len(SECTIONS), np.int64)
    for _, rows in row_groups(image.index.table, widths):
        totals += section_sizes(rows, widths).sum(axis=0)
    claimed, held = int(totals.sum()), sum(map(len, image.streams.values()))
    if claimed > MAX_RATIO * held + SLACK_BYTES:
        raise ValueError(f"records claim {claimed} bytes of {held}")
    nothing = np.zeros(0, np.uint8)
    return [
        _StreamReader(image.streams.get(name, nothing), shapes[name], total)
        for name, total in zip(SECTIONS, totals.tolist(), strict=True)
    ]


class _StreamReader:
    """Reads a stream of `total` bytes from the beginning, a chunk of every plane at a time."""

    def __init__(self, file: NDArray[np.uint8], shape: StreamShape, total: int) -> None:
        self.file = file
        self.shape = shape
        self.buffer = b""
        self.position = 0
        self.chunk = 0
        chunks = -(-total // shape.chunk_bytes)
        size = 16 * shape.planes * chunks + 4
        if chunks and size > len(file):
            raise ValueError(f"{total} bytes are claimed of a stream of {len(file)}")
        entries = file[len(file) - size : len(file) - 4] if chunks else file[:0]
        self.entries = entries.copy().view("<u8").reshape(shape.planes, chunks, 2)
        if not _disjoint(self.entries.reshape(-1, 2), len(file) - size):
            raise ValueError("chunks that overlap")

    def pieces(self, ends: list[int]) -> list[bytes]:
        """The next items, cut at `ends`."""
        total = ends[-1] if ends else 0
        if len(self.buffer) - self.position < total:
            self._fill(total)
        start = self.position
        self.position += total
        bounds = [start, *(start + end for end in ends)]
        return [self.buffer[a:b] for a, b in itertools.pairwise(bounds)]

    def _fill(self, size: int) -> None:
        """Have at least `size` bytes in the buffer."""
        held = [self.buffer[self.position :]]
        missing = size - len(held[0])
        while missing > 0:
            held.append(self._next())
            missing -= len(held[-1])
        self.buffer, self.position = b"".join(held), 0

    def _next(self) -> bytes:
        if self.chunk >= self.entries.shape[1]:
            raise ValueError("a stream is too short")
        planes = [
            _unpack(self.file[offset : offset + size], PLANE_BYTES)
            for offset, size in self.entries[:, self.chunk].tolist()
        ]
        self.chunk += 1
        stacked = np.stack(planes).reshape(self.shape.planes, -1, self.shape.kind.itemsize)
        return stacked.transpose(1, 0, 2).tobytes()


def _disjoint(extents: NDArray[np.uint64], limit: int) -> bool:
    """Whether extents (offset and size) lie below `limit` and none on another."""
    if bool((extents > max(limit, 0)).any()):
        return False
    starts, sizes = extents[np.argsort(extents[:, 0], kind="stable")].astype(np.int64).T
    return bool((starts + sizes <= np.append(starts[1:], limit)).all())
