"""Reading a store: mapped, so many processes share its pages and opening costs next to nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.errors import (
    StoreDamageError,
    StoreIncompleteError,
    UtteranceNotFoundError,
)
from kdpipe.store.cache import is_staged, mappable_path
from kdpipe.store.image import StoreImage
from kdpipe.store.index import find_rows, ids_between
from kdpipe.store.layout import COLUMN, LENGTH_COLUMNS, SECTIONS, Widths, addresses, section_sizes
from kdpipe.store.opening import open_image
from kdpipe.store.ragged import RaggedBatch, SectionCutter, decode_batch, utterance_targets
from kdpipe.store.record import record_checksum
from kdpipe.store.schema import StoreHeader, UtteranceTargets

__all__ = ["TeacherStore", "open_store"]

IDS_AT_ONCE = 4096
CRC = COLUMN["crc32c"]
HEAD_BYTES = 4 * len(LENGTH_COLUMNS)
NOTHING = np.zeros(0, np.uint8)


def open_store(path: Path | str, allow_partial: bool = False) -> TeacherStore:
    """Open a store for reading, from a path or any fsspec URL (s3://bucket/train.zarr).

    A store elsewhere, or of the compact profile, is first staged into a local cache
    ($KDPIPE_CACHE) keyed by its content digest. Raises `StoreIncompleteError` for a store under
    construction unless `allow_partial`: then it holds what is acknowledged at this moment.
    Raises `InputNotFoundError` where nothing is, `StoreFormatError` for what is no store,
    `StoreDamageError` for one whose metadata is damaged, and `DependencyError` where the URL's
    protocol needs a package that is not installed.
    """
    image = open_image(mappable_path(path))
    if image.digest is None and not allow_partial:
        raise StoreIncompleteError(path, len(image.index))
    return TeacherStore(image, allow_partial)


class TeacherStore:
    """A store opened for reading: `store["utt-id"]`, `len`, iteration over ids, `read_batch`.

    Holds no state but mapped memory (and `ids`, once asked for): threads may share it, forked
    processes inherit it, and pickling sends its path alone. Every record is checked as it is
    read: what does not fit its checksum is a `StoreDamageError` naming part and utterance, never
    a wrong target.
    """

    def __init__(self, image: StoreImage, allow_partial: bool) -> None:
        self._image = image
        self._allow_partial = allow_partial
        self._widths = Widths.of(image.header)

    @property
    def path(self) -> Path:
        """Where the store is."""
        return self._image.path

    @property
    def header(self) -> StoreHeader:
        """Whose targets these are and how they were made."""
        return self._image.header

    @property
    def digest(self) -> str | None:
        """The content digest; None while the store is under construction."""
        return self._image.digest

    @property
    def complete(self) -> bool:
        """Whether the store is finished."""
        return self._image.digest is not None

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """All ids, in byte order."""
        return tuple(self)

    def __len__(self) -> int:
        return len(self._image.index)

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), IDS_AT_ONCE):
            for name in ids_between(self._image.index, start, start + IDS_AT_ONCE):
                yield name.decode(errors="replace")

    def __contains__(self, utterance: object) -> bool:
        if not isinstance(utterance, str):
            return False
        return int(self._find([utterance])[0]) >= 0

    def __getitem__(self, utterance: str) -> UtteranceTargets:
        return utterance_targets(self.read_batch([utterance]), 0)

    def __reduce__(self) -> tuple[Any, tuple[Path, bool]]:
        return open_store, (self.path.absolute(), self._allow_partial)

    def lengths(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Encoder frames and token rows of each utterance, (B, 2), without reading targets."""
        rows = self._image.index.table[self._rows(ids)]
        return rows[:, [COLUMN["frames"], COLUMN["tokens"]]].astype(np.int64)

    def same_record(self, other: TeacherStore, utterance: str) -> bool:
        """Whether two stores hold the same bytes for an utterance that both have."""
        pairs = []
        for store in (self, other):
            rows = store._image.index.table[store._rows([utterance])]
            _, records = store._records([utterance], rows)
            head = rows[0, COLUMN["frames"] : COLUMN["crc32c"]].tobytes()
            pairs.append((head, records[0].tobytes()))
        return pairs[0] == pairs[1]

    def missing(self, ids: Sequence[str]) -> list[str]:
        """Those of `ids` that the store lacks."""
        return [ids[position] for position in np.flatnonzero(self._find(ids) < 0).tolist()]

    def read_batch(self, ids: Sequence[str]) -> RaggedBatch:
        """The targets of utterances, in the order given, as flat arrays.

        Raises `UtteranceNotFoundError` or `StoreDamageError`, naming the utterance.
        """
        rows = self._image.index.table[self._rows(ids)]
        sizes, records = self._records(ids, rows)
        try:
            return decode_batch(ids, rows, sizes, records, self.header)
        except (ValueError, IndexError) as error:
            raise self._culprit(ids, rows, str(error)) from error

    def read_sections(self, ids: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
        """The records of utterances, checked but not decoded: the bytes of every section of
        FORMAT.md, joined over the batch."""
        rows = self._image.index.table[self._rows(ids)]
        sizes, records = self._records(ids, rows)
        cut = SectionCutter(records, np.cumsum(sizes, axis=1))
        return {name: cut.section(name, np.dtype(np.uint8)) for name in SECTIONS}

    def _find(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Table rows, -1 for what the store lacks; half a surrogate pair is in no id."""
        names = [utterance.encode(errors="surrogatepass") for utterance in ids]
        return find_rows(self._image.index, names)

    def _rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        rows = self._find(ids)
        if len(rows) and rows.min() < 0:
            raise UtteranceNotFoundError(self.path, ids[int(rows.argmin())])
        return rows

    def _records(
        self, ids: Sequence[str], rows: NDArray[np.uint32]
    ) -> tuple[NDArray[np.int64], list[NDArray[np.uint8]]]:
        """Sizes of the sections of each record, and its raw bytes, checked."""
        sizes = section_sizes(rows, self._widths)
        if len(sizes) and sizes.min() < 0:
            position = int(np.argmin(sizes.min(axis=1)))
            raise self._damage("table", "lengths contradict", [ids[position]])
        places = addresses(rows).tolist()
        checksums = rows[:, CRC].tolist()
        heads = rows[:, COLUMN["frames"] : COLUMN["crc32c"]].tobytes()
        stride, shards = self._image.stride, self._image.records
        records = []
        for position, size in enumerate(sizes.sum(axis=1).tolist()):
            number, offset = divmod(places[position], stride)
            record = shards.get(number, NOTHING)[offset : offset + size]
            head = heads[HEAD_BYTES * position : HEAD_BYTES * (position + 1)]
            checksum = record_checksum(head + ids[position].encode(), record)
            if checksum != checksums[position] or len(record) != size:
                part = self._image.part(places[position])
                raise self._damage(part, "a record is not what was written", [ids[position]])
            records.append(record)
        return sizes, records

    def _culprit(
        self, ids: Sequence[str], rows: NDArray[np.uint32], problem: str
    ) -> StoreDamageError:
        """Which utterance of a batch could not be decoded."""
        for position, utterance in enumerate(ids):
            single = rows[position : position + 1]
            try:
                decode_batch([utterance], single, *self._records([utterance], single), self.header)
            except (ValueError, IndexError) as error:
                place = int(addresses(single)[0])
                return self._damage(self._image.part(place), str(error), [utterance])
        return self._damage("records", problem, ids)

    def _damage(self, part: str, problem: str, ids: Sequence[str]) -> StoreDamageError:
        """The error for damage; a copy in the cache is fetched again rather than repaired."""
        error = StoreDamageError(self.path, part, problem, ids)
        if is_staged(self.path):
            error.remedy = f"Remove {self.path}: the store is fetched again when it is opened"
            error.args = (f"{error.message}. {error.remedy}",)
        return error
