"""The index of a store: its table sorted by id, the ids themselves, and a hashed look-up."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdpipe.store.layout import COLUMN, COLUMNS
from kdpipe.store.schema import StoreHeader

__all__ = [
    "ContentDigest",
    "Index",
    "build_index",
    "cut_ids",
    "find_rows",
    "hashes_of",
    "id_hash",
    "ids_between",
    "lookup_of",
]

ID_END = COLUMN["id_end"]


@dataclass(frozen=True)
class Index:
    """`table` (n, 12) uint32 and `ids` (UTF-8, joined) in byte order of the ids; `lookup` (2, n)
    uint64: the sorted hashes of the ids, and the table row of each."""

    table: NDArray[np.uint32]
    ids: NDArray[np.uint8]
    lookup: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.table)


def id_hash(name: bytes) -> int:
    """The first 8 bytes of an id's SHA-256, little-endian."""
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "little")


def build_index(
    names: Sequence[bytes], rows: NDArray[np.uint32]
) -> tuple[Index, NDArray[np.int64]]:
    """Sort by id; of several rows of one id the first stays.

    Returns the index and, for each of its rows, the position in `names` it came from.
    """
    order = sorted(range(len(names)), key=names.__getitem__)
    kept = [
        position
        for place, position in enumerate(order)
        if not place or names[order[place - 1]] != names[position]
    ]
    chosen = np.asarray(kept, np.int64)
    table = np.ascontiguousarray(rows.reshape(-1, len(COLUMNS))[chosen], "<u4")
    sizes = np.fromiter((len(names[position]) for position in kept), np.int64, len(kept))
    table[:, ID_END] = np.cumsum(sizes)
    blob = np.frombuffer(b"".join(names[position] for position in kept), np.uint8)
    return Index(table, blob, lookup_of(hashes_of([names[position] for position in kept]))), chosen


def lookup_of(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The hashed look-up for the ids' hashes in the order of the table."""
    by_hash = np.argsort(hashes, kind="stable")
    lookup: NDArray[np.uint64] = np.stack((hashes[by_hash], by_hash.astype("<u8"))).astype("<u8")
    return lookup


def hashes_of(names: Sequence[bytes]) -> NDArray[np.uint64]:
    """`id_hash` of many."""
    return np.fromiter((id_hash(name) for name in names), np.uint64, len(names))


def find_rows(index: Index, names: Sequence[bytes]) -> NDArray[np.int64]:
    """The table row of each id, -1 where there is none; cost grows with log(n) alone."""
    rows = np.full(len(names), -1, np.int64)
    if not len(index):
        return rows
    hashes = hashes_of(names)
    places = np.searchsorted(index.lookup[0], hashes)
    places[places == len(index)] = 0
    candidates = np.minimum(index.lookup[1][places], len(index) - 1).astype(np.int64)
    ends = index.table[candidates, ID_END].tolist()
    starts = index.table[candidates - 1, ID_END].tolist()
    for position, (row, name) in enumerate(zip(candidates.tolist(), names, strict=True)):
        start = starts[position] if row else 0
        if index.ids[start : ends[position]].tobytes() == name:
            rows[position] = row
        else:
            rows[position] = _find_among_equals(index, name, int(places[position]))
    return rows


def _find_among_equals(index: Index, name: bytes, place: int) -> int:
    """Look at the further rows whose ids have the same hash."""
    wanted = np.uint64(id_hash(name))
    while place < len(index) and index.lookup[0][place] == wanted:
        row = min(int(index.lookup[1][place]), len(index) - 1)
        if ids_between(index, row, row + 1)[0] == name:
            return row
        place += 1
    return -1


def ids_between(index: Index, first: int, last: int) -> list[bytes]:
    """The ids of table rows `first:last`."""
    begin = int(index.table[first - 1, ID_END]) if first else 0
    return cut_ids(index.table[first:last, ID_END].tolist(), index.ids, begin)


def cut_ids(ends: Sequence[int], ids: NDArray[np.uint8], begin: int = 0) -> list[bytes]:
    """Ids that lie end to end in `ids` from `begin` on, given where each ends."""
    starts = [begin, *ends]
    return [ids[start:end].tobytes() for start, end in zip(starts, ends, strict=False)]


class ContentDigest:
    """SHA-256 over the header's identity and the utterances' digests in order of their ids.

    Independent of backend, writers, order of writing and crashes.
    """

    def __init__(self, header: StoreHeader) -> None:
        self._total = hashlib.sha256(header.identity_digest().encode())

    def update(self, digests: bytes) -> None:
        """Add the digests of the next utterances, 32 bytes each."""
        self._total.update(digests)

    def hexdigest(self) -> str:
        """The content digest of what was added."""
        return self._total.hexdigest()
