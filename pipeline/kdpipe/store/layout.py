"""Where the bytes of a store are: table columns, sections of a record, sizes of shards.

FORMAT.md is the description; this is the same in code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.store.schema import StoreHeader

__all__ = [
    "CHUNK_BYTES",
    "COLUMN",
    "COLUMNS",
    "LENGTH_COLUMNS",
    "SCORES",
    "SECTIONS",
    "SHARD_BYTES",
    "Widths",
    "addresses",
    "record_sizes",
    "section_sizes",
    "smallest_id_bytes",
]

ROWS_AT_ONCE = 1 << 12

CHUNK_BYTES = 1 << 16
"""Inner chunk of a shard of `records`."""

SHARD_BYTES = 1 << 26
"""A shard of `records`: one file in Zarr; a record never crosses from one into the next."""

LENGTH_COLUMNS = (
    "frames",
    "frame_classes",
    "frame_ids",
    "tokens",
    "token_classes",
    "hypotheses",
    "middle_tokens",
    "status",
)
"""What a record needs beside its bytes to be read; part of its digest."""

COLUMNS = ("address_low", "address_high", *LENGTH_COLUMNS, "crc32c", "id_end")
"""Columns of `table`, all uint32."""

COLUMN = {name: position for position, name in enumerate(COLUMNS)}

SECTIONS = (
    "frame_rows",
    "frame_ids",
    "frame_codes",
    "frame_tails",
    "token_rows",
    "token_ids",
    "token_codes",
    "token_tails",
    "reference",
    "spans",
    "middles",
    "scores",
)
"""The parts of a record, in order."""

SCORES = ("attention", "ctc", "joint", "posterior")


@dataclass(frozen=True)
class Widths:
    """The element types that follow from a header, all little-endian.

    `row` holds the number of classes of a row with `flag` on top: set when the likeliest class
    is blank, whose id is then left out. With `implied` the likeliest class has no code.
    """

    row: np.dtype[Any]
    id: np.dtype[Any]
    code: np.dtype[Any]
    tail: np.dtype[Any]
    implied: bool
    flag: int

    @classmethod
    def of(cls, header: StoreHeader) -> Widths:
        narrow = header.top_k < 2**7
        vocab_size = header.tokenizer.vocab_size
        return cls(
            row=np.dtype("u1" if narrow else "<u2"),
            id=np.dtype(f"<u{header.id_bytes or (2 if vocab_size <= 2**16 else 4)}"),
            code=np.dtype({"log8": "u1", "fp16": "<f2", "fp32": "<f4"}[header.codec]),
            tail=np.dtype("<f4" if header.codec == "fp32" else "<f2"),
            implied=header.codec == "log8",
            flag=2**7 if narrow else 2**15,
        )


def smallest_id_bytes(vocab_size: int) -> int:
    """Bytes that hold any class id."""
    return next(size for size in (1, 2, 4) if vocab_size <= 256**size)


def section_sizes(rows: NDArray[np.uint32], widths: Widths) -> NDArray[np.int64]:
    """Bytes of each of the 12 sections, (n, 12), from rows of `table` (n, 12)."""
    columns = rows.astype(np.int64).T
    length = {name: columns[COLUMN[name]] for name in LENGTH_COLUMNS}
    implied = int(widths.implied)
    sizes = np.empty((len(SECTIONS), len(rows)), np.int64)
    sizes[0] = length["frames"] * widths.row.itemsize
    sizes[1] = length["frame_ids"] * widths.id.itemsize
    sizes[2] = (length["frame_classes"] - implied * length["frames"]) * widths.code.itemsize
    sizes[3] = length["frames"] * widths.tail.itemsize
    sizes[4] = length["tokens"] * widths.row.itemsize
    sizes[5] = length["token_classes"] * widths.id.itemsize
    sizes[6] = (length["token_classes"] - implied * length["tokens"]) * widths.code.itemsize
    sizes[7] = length["tokens"] * widths.tail.itemsize
    sizes[8] = np.maximum(length["tokens"] - 1, 0) * widths.id.itemsize
    sizes[9] = length["hypotheses"] * 6
    sizes[10] = length["middle_tokens"] * widths.id.itemsize
    sizes[11] = length["hypotheses"] * 16
    return sizes.T


def record_sizes(table: NDArray[np.uint32], widths: Widths) -> NDArray[np.int64]:
    """Bytes of each record, (n,), from a whole table; what is impossible counts 0."""
    sizes = np.empty(len(table), np.int64)
    for start in range(0, len(table), ROWS_AT_ONCE):
        rows = section_sizes(table[start : start + ROWS_AT_ONCE], widths)
        sizes[start : start + ROWS_AT_ONCE] = np.clip(rows, 0, None).sum(axis=1)
    return sizes


def addresses(rows: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Positions in `records` of rows of `table` (n, 12); may be anything in a hostile store."""
    low = rows[:, COLUMN["address_low"]].astype(np.uint64)
    high = rows[:, COLUMN["address_high"]].astype(np.uint64)
    return (low | (high << np.uint64(32))).astype(np.int64)
