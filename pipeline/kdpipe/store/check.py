"""Verifying a store: every byte against its checksum, every record against the format."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from kdpipe.errors import StoreDamageError, StoreFormatError
from kdpipe.store.blocks import Block, block_digests, damaged_rows, row_groups
from kdpipe.store.compact import CompactImage, open_compact
from kdpipe.store.convert import all_blocks
from kdpipe.store.hdf5_backend import open_hdf5, read_user_block, structure_checksum
from kdpipe.store.image import StoreImage, checksum_of, map_file
from kdpipe.store.index import ContentDigest, Index, hashes_of, ids_between, lookup_of
from kdpipe.store.journal import read_working_header, shard_path, survey_ledger
from kdpipe.store.layout import COLUMN, Widths, addresses, section_sizes
from kdpipe.store.opening import image_of_ledger
from kdpipe.store.paths import backend_of, is_compact, store_state, unless_finished, working_folder
from kdpipe.store.ragged import decode_batch
from kdpipe.store.schema import StoreHeader
from kdpipe.store.zarr_backend import open_zarr, read_root

__all__ = ["Finding", "VerifyReport", "broken_records", "verify_store"]

SLACK_BYTES = 1 << 24
ROWS_AT_ONCE = 1 << 12

Image = StoreImage | CompactImage
Advance = Callable[[int], object]


@dataclass(frozen=True)
class Finding:
    """One thing wrong: the part (a file or dataset) it is in, and the utterances it touches."""

    part: str
    problem: str
    ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class VerifyReport:
    """What a check of a whole store found; `notes` are harmless."""

    path: str
    state: Literal["partial", "complete"]
    utterances: int
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    @property
    def damaged_ids(self) -> tuple[str, ...]:
        """All utterances that anything wrong touches."""
        return tuple(dict.fromkeys(name for finding in self.findings for name in finding.ids))


def verify_store(path: Path, advance: Advance = lambda utterances: None) -> VerifyReport:
    """Check a whole store, finished or not; `advance` is told how many utterances are done.

    Raises `StoreFormatError` when there is no store, or one of a newer format.
    """
    state = store_state(path)
    if state == "absent":
        raise StoreFormatError(path, "no teacher store", "Check the path")
    if state == "partial":
        report = unless_finished(path, lambda: _verify_partial(path, advance))
        if report is not None:
            return report
        state = "complete"
    try:
        parts = list(_damaged_files(path) if backend_of(path) == "zarr" else _damaged_hdf5(path))
    except StoreDamageError as error:
        return VerifyReport(str(path), state, 0, (Finding(error.part, error.problem),))
    try:
        image = _open(path)
    except (StoreFormatError, StoreDamageError) as error:
        parts = parts or [Finding("index", error.problem)]
        return VerifyReport(str(path), state, 0, tuple(parts))
    findings = _merge(parts, list(_damaged_content(image, advance)))
    return VerifyReport(str(path), state, len(image.index), tuple(findings))


def _open(path: Path) -> Image:
    if backend_of(path) == "hdf5":
        return open_hdf5(path, check_structure=False)
    return open_compact(path) if is_compact(path) else open_zarr(path)


def _damaged_files(path: Path) -> Iterator[Finding]:
    """Files of a Zarr store whose size or checksum is not what the root metadata says."""
    _, _, files = read_root(path)
    for name, (size, checksum) in files.items():
        try:
            content = map_file(path / name, size)
        except StoreFormatError as error:
            yield Finding(name, error.problem)
            continue
        if checksum_of(content) != checksum:
            yield Finding(name, "its checksum does not fit")


def _damaged_hdf5(path: Path) -> Iterator[Finding]:
    """Datasets of an HDF5 store, or the rest of the file, whose checksum does not fit."""
    store, _, block, extents = read_user_block(path)
    try:
        file = map_file(path, int(store["bytes"]))
    except StoreFormatError as error:
        yield Finding("file", error.problem)
        return
    if structure_checksum(file, block, extents) != store["structure_crc32c"]:
        yield Finding("HDF5 structure", "its checksum does not fit")
    for name, (offset, size, checksum) in extents.items():
        if checksum_of(file[offset : offset + size]) != checksum:
            yield Finding(name, "its checksum does not fit")


def _verify_partial(path: Path, advance: Advance) -> VerifyReport:
    """What is wrong with a store under construction."""
    working = working_folder(path)
    try:
        header, shard_bytes = read_working_header(working)
    except StoreDamageError as error:
        return VerifyReport(str(path), "partial", 0, (Finding(error.part, error.problem),))
    ledger = survey_ledger(working)
    parts = [Finding(name, "damaged") for name in ledger.damaged]
    for number, (length, checksum) in ledger.shards.items():
        try:
            content = map_file(shard_path(working, number))[:length]
        except StoreFormatError as error:
            parts.append(Finding(f"records/c/{number}", error.problem))
            continue
        if len(content) < length or checksum_of(content) != checksum:
            parts.append(Finding(f"records/c/{number}", "its checksum does not fit"))
    image = image_of_ledger(path, working, header, ledger, shard_bytes)
    findings = _merge(parts, list(_damaged_content(image, advance)))
    notes = [f"{name} is only half there: its writer was killed" for name in ledger.torn]
    return VerifyReport(str(path), "partial", len(image.index), tuple(findings), tuple(notes))


def _merge(parts: list[Finding], records: list[Finding]) -> list[Finding]:
    """Put the utterances found damaged to the damaged parts they are in."""
    named = {part.part for part in parts}
    ids = {
        part: tuple(name for found in records if found.part == part for name in found.ids)
        for part in named
    }
    merged = [Finding(part.part, part.problem, ids[part.part]) for part in parts]
    return merged + [found for found in records if found.part not in named]


def _damaged_content(image: Image, advance: Advance) -> Iterator[Finding]:
    """Index and records of a store, checked one by one; findings are grouped by part."""
    lie = _exaggeration(image)
    if lie:
        yield Finding("table", lie)
        return
    index_problem = _index_problem(image.index)
    if index_problem:
        yield index_problem
    grouped: dict[tuple[str, str], list[str]] = {}
    total = ContentDigest(image.header)
    try:
        for block in all_blocks(image):
            for position, why in broken_records(block, image.header).items():
                grouped.setdefault((_part(image, block, position), why), []).append(
                    block.names[position].decode(errors="replace")
                    or f"row {block.first + position}"
                )
            total.update(block_digests(block))
            advance(len(block.rows))
    except StoreFormatError as error:
        yield Finding("streams", error.problem)
        return
    for (part, why), names in grouped.items():
        yield Finding(part, why, tuple(names))
    if not grouped and image.digest not in (None, total.hexdigest()):
        yield Finding("content", "the digest does not fit")


def _part(image: Image, block: Block, position: int) -> str:
    if isinstance(image, CompactImage):
        return "streams"
    return image.part(int(addresses(block.rows[position : position + 1])[0]))


def _exaggeration(image: Image) -> str | None:
    """Claims so far beyond the bytes that are there that following them all would never end."""
    if isinstance(image, StoreImage):
        largest = max((len(shard) for shard in image.records.values()), default=0)
        held = sum(len(shard) for shard in image.records.values())
        widths = Widths.of(image.header)
        claimed = sum(
            int(np.clip(section_sizes(rows, widths).sum(axis=1), 0, largest).sum())
            for _, rows in row_groups(image.index.table, widths)
        )
        if claimed > 4 * held + SLACK_BYTES:
            return f"records claim {claimed} bytes of {held}"
    ends = np.clip(image.index.table[:, COLUMN["id_end"]], 0, len(image.index.ids))
    named = int(np.clip(np.diff(ends.astype(np.int64), prepend=0), 0, None).sum())
    if named > 4 * len(image.index.ids) + SLACK_BYTES:
        return f"ids claim {named} bytes of {len(image.index.ids)}"
    return None


def _index_problem(index: Index) -> Finding | None:
    """What is wrong with the index as a whole."""
    ends = index.table[:, COLUMN["id_end"]].astype(np.int64)
    if (np.diff(ends, prepend=0) <= 0).any() or int(ends[-1] if len(ends) else 0) != len(index.ids):
        return Finding("table", "ids do not lie end to end")
    before, lookup = b"", []
    for first in range(0, len(index), ROWS_AT_ONCE):
        names = ids_between(index, first, first + ROWS_AT_ONCE)
        if any(name >= after for name, after in itertools.pairwise([before, *names])):
            return Finding("ids", "ids are not in order")
        before = names[-1]
        lookup.append(hashes_of(names))
    if not np.array_equal(
        lookup_of(np.concatenate([*lookup, np.zeros(0, np.uint64)])), index.lookup
    ):
        return Finding("lookup", "does not fit the ids")
    return None


def broken_records(block: Block, header: StoreHeader) -> dict[int, str]:
    """Positions in a block of records that are not what was written, or are no records at all."""
    broken = dict.fromkeys(damaged_rows(block), "records are not what was written")
    sizes = section_sizes(block.rows, Widths.of(header))
    lengths = np.diff(block.ends, prepend=0)
    for row in np.flatnonzero((sizes.min(axis=1) < 0) | (sizes.sum(axis=1) != lengths)).tolist():
        broken.setdefault(row, "lengths that contradict each other")
    good = [row for row in range(len(block.rows)) if row not in broken]
    if good and _undecodable(block, header, good):
        for row in good:
            problem = _undecodable(block, header, [row])
            if problem:
                broken[row] = problem
    return dict(sorted(broken.items()))


def _undecodable(block: Block, header: StoreHeader, chosen: list[int]) -> str | None:
    """Why some records of a block cannot be decoded together."""
    records = list(block.records())
    rows = block.rows[chosen]
    sizes = section_sizes(rows, Widths.of(header))
    try:
        names = [block.names[row].decode() for row in chosen]
        decode_batch(names, rows, sizes, [records[row] for row in chosen], header)
    except (ValueError, IndexError) as error:
        return str(error)
    return None
