"""Going through a whole store in order of ids, some thousand records at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdpipe.errors import StoreDamageError
from kdpipe.store.image import StoreImage, release_pages
from kdpipe.store.index import ContentDigest, Index, ids_between
from kdpipe.store.layout import (
    COLUMN,
    LENGTH_COLUMNS,
    Widths,
    addresses,
    record_sizes,
)
from kdpipe.store.record import record_checksum
from kdpipe.store.schema import StoreHeader

__all__ = [
    "Block",
    "block_digests",
    "checked",
    "damaged_rows",
    "mapped_blocks",
    "place_records",
    "row_groups",
]

BLOCK_ROWS = 512
BLOCK_BYTES = 1 << 20
HELD_BYTES = 1 << 24
CRC = COLUMN["crc32c"]
HEAD_BYTES = 4 * len(LENGTH_COLUMNS)
NOTHING = np.zeros(0, np.uint8)


@dataclass(frozen=True)
class Block:
    """Consecutive rows of `table` from `first` on, their ids, and their records joined.

    Record i is `content[ends[i-1]:ends[i]]`.
    """

    first: int
    rows: NDArray[np.uint32]
    names: list[bytes]
    content: NDArray[np.uint8]
    ends: list[int]

    def records(self) -> Iterator[NDArray[np.uint8]]:
        """Views of the records one by one."""
        start = 0
        for end in self.ends:
            yield self.content[start:end]
            start = end

    def heads(self) -> Iterator[bytes]:
        """The lengths of each record as FORMAT.md hashes them: 8 uint32."""
        joined = self.rows[:, COLUMN["frames"] : CRC].tobytes()
        for start in range(0, len(joined), HEAD_BYTES):
            yield joined[start : start + HEAD_BYTES]


def mapped_blocks(image: StoreImage) -> Iterator[Block]:
    """All records of a mapped store; where one lies outside its part it comes out short."""
    widths, held = Widths.of(image.header), 0
    for first, rows in row_groups(image.index.table, widths):
        sizes = record_sizes(rows, widths).tolist()
        records = []
        for place, size in zip(addresses(rows).tolist(), sizes, strict=True):
            number, offset = divmod(place, image.stride)
            records.append(image.records.get(number, NOTHING)[offset : offset + size])
        ends = np.cumsum([len(record) for record in records]).tolist()
        names = ids_between(image.index, first, first + len(rows))
        held += ends[-1]
        yield Block(first, rows, names, np.concatenate(records), ends)
        if held > HELD_BYTES:
            held = 0
            for shard in image.records.values():
                release_pages(shard)


def row_groups(
    table: NDArray[np.uint32], widths: Widths
) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """Consecutive rows whose records make up `BLOCK_BYTES`, at most `BLOCK_ROWS` of them."""
    first = 0
    while first < len(table):
        rows = table[first : first + BLOCK_ROWS]
        total = np.cumsum(record_sizes(rows, widths))
        count = max(1, int(np.searchsorted(total, BLOCK_BYTES)))
        yield first, rows[:count]
        first += count


def damaged_rows(block: Block) -> list[int]:
    """Positions in a block whose record is not what its checksum says."""
    wanted = block.rows[:, CRC].tolist()
    found = [
        record_checksum(head + name, record)
        for head, name, record in zip(block.heads(), block.names, block.records(), strict=True)
    ]
    return [position for position, crc in enumerate(wanted) if found[position] != crc]


def block_digests(block: Block) -> bytes:
    """The digests of the utterances of a block, as FORMAT.md defines them, end to end."""
    return b"".join(
        hashlib.sha256(len(name).to_bytes(4, "little") + head + name + record.tobytes()).digest()
        for head, name, record in zip(block.heads(), block.names, block.records(), strict=True)
    )


def checked(
    blocks: Iterable[Block], path: Path, header: StoreHeader, digest: str | None
) -> Iterator[Block]:
    """Pass blocks on; at the first damaged record, or when the digest does not fit at the end,
    raise `StoreDamageError`. Without `digest` records alone are checked."""
    total = ContentDigest(header)
    for block in blocks:
        damaged = damaged_rows(block)
        if damaged:
            names = [block.names[position].decode(errors="replace") for position in damaged]
            raise StoreDamageError(path, "records", "records are not what was written", names)
        if digest is not None:
            total.update(block_digests(block))
        yield block
    if digest is not None and total.hexdigest() != digest:
        raise StoreDamageError(path, "content", "the digest does not fit")


def place_records(index: Index, header: StoreHeader, shard_bytes: int) -> Index:
    """The index of the same records laid end to end in order of ids, none across two shards."""
    sizes = record_sizes(index.table, Widths.of(header))
    ends = np.cumsum(sizes)
    first = limit = 0
    while first < len(sizes):
        ends[first:] += limit - (ends[first] - sizes[first])
        limit += shard_bytes
        first = int(np.searchsorted(ends, limit, "right"))
    places = ends - sizes
    table = np.array(index.table)
    table[:, COLUMN["address_low"]] = places & 0xFFFFFFFF
    table[:, COLUMN["address_high"]] = places >> 32
    return Index(table, index.ids, index.lookup)
