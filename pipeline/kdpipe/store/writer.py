"""Writing a store: any number of writers, killed and resumed at will, then finished once."""

from __future__ import annotations

import datetime
import importlib.metadata
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from kdpipe.errors import KdpipeError, OutputConflictError, StoreFormatError, StoreWriteError
from kdpipe.store.encode import check_codec, kl_to_stored
from kdpipe.store.journal import (
    Journal,
    journal_folder,
    read_ledger,
    read_working_header,
    working_lock,
    write_working_header,
)
from kdpipe.store.layout import SHARD_BYTES, smallest_id_bytes
from kdpipe.store.paths import store_state, working_folder
from kdpipe.store.ragged import decode_records
from kdpipe.store.record import Record, pack_record
from kdpipe.store.schema import StoreHeader, UtteranceTargets, plain_header

__all__ = ["DensePosteriors", "StoreWriter", "write_failure"]

DensePosteriors = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Dense natural-log posteriors of one utterance: frames (T', V) and tokens (L+1, V)."""


class StoreWriter:
    """One of the writers of a store at `path` (.zarr or .h5).

    The first writer lays the store down; later ones, also after a crash and in any number, must
    bring a header of the same identity. `writer` names this one in its journal, for people.
    Targets are kept in memory until `flush_bytes` or `flush_seconds` are reached, then appended
    and acknowledged; `flush` does so at once. As a context manager it closes at the end, also on
    KeyboardInterrupt; after another error what was not acknowledged is dropped.

    Raises `OutputConflictError` when the store was begun with other settings,
    `StoreFormatError` when it is complete (`store_state`) or something else is in its place, and
    `DataError` for a header that no store can hold.
    """

    def __init__(
        self,
        path: Path,
        header: StoreHeader,
        writer: str = "0",
        flush_bytes: int = 1 << 20,
        flush_seconds: float = 15.0,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        header = plain_header(header)
        check_codec(header)
        self.path = path
        self.writer = writer
        self.flush_bytes = flush_bytes
        self.flush_seconds = flush_seconds
        self._working = working_folder(path)
        self._locks = ExitStack()
        self.header, self._shard_bytes = self._begin(header, shard_bytes)
        try:
            self._known = self.done_ids()
        except BaseException:
            self._locks.close()
            raise
        self._closed = False
        self._journal: Journal | None = None
        self._pending: list[Record] = []
        self._pending_bytes = 0
        self._fidelity: dict[str, list[float]] = {}
        self._flushed = time.monotonic()

    def done_ids(self) -> set[str]:
        """The utterances that any writer has acknowledged so far."""
        return {name.decode() for name in read_ledger(self._working).ids}

    def add(self, targets: UtteranceTargets, dense: DensePosteriors | None = None) -> bool:
        """Take one utterance; False when the store had it already.

        With `dense`, the KL of the teacher's dense posteriors to what the store gives back is
        measured; `finish` writes the mean over all writers into the header. Raises `DataError`
        for targets that do not fit the header or each other, `StoreWriteError` when the disk
        refuses a commit.
        """
        if targets.id in self._known:
            return False
        record = pack_record(targets, self.header)
        sums = None if dense is None else self._divergence(record, dense)
        return self.add_record(record, sums)

    def add_record(self, record: Record, fidelity: list[float] | None = None) -> bool:
        """Take a record of another store of the same codec as it is; otherwise like `add`.

        `fidelity` holds the KL summed over frames, their number, and the same of tokens.
        """
        if self._closed:
            raise StoreWriteError(self.path, "its writer is closed", "Open another StoreWriter")
        if record.id in self._known:
            return False
        if len(record.content) > self._shard_bytes:
            raise StoreWriteError(
                self.path,
                f"targets of {record.id} take {len(record.content)} bytes, a shard"
                f" {self._shard_bytes}",
                "Cut the utterance, lower --top-k, or begin the store with larger shards",
            )
        if fidelity is not None:
            self._fidelity[record.id] = fidelity
        self._known.add(record.id)
        self._pending.append(record)
        self._pending_bytes += len(record.content)
        if self._pending_bytes >= self.flush_bytes or self._waited() >= self.flush_seconds:
            self.flush()
        return True

    def flush(self) -> None:
        """Acknowledge all that was added: from here on no crash loses it.

        Raises `StoreWriteError` when the disk refuses; what was pending stays so, and `flush`
        may be called again.
        """
        try:
            while self._pending:
                self._commit(self._fitting())
        except OSError as error:
            raise write_failure(self.path, error) from error
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush and give up the files and locks."""
        try:
            self.flush()
        finally:
            self._release()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self.close()
        else:
            self._release()

    def _begin(self, header: StoreHeader, shard_bytes: int) -> tuple[StoreHeader, int]:
        """Lay the store down, or check that it is the one begun earlier; join its writers."""
        self._refuse_complete()
        try:
            for folder in (journal_folder(self._working), self._working / "records" / "c"):
                folder.mkdir(parents=True, exist_ok=True)
            with working_lock(self._working, "setup.lock", shared=False, wait=True):
                if store_state(self.path) == "absent":
                    write_working_header(self._working, _stamped(header), shard_bytes)
                self._refuse_complete()
                begun, begun_bytes = read_working_header(self._working)
            changes = _changes(begun, header)
            if changes:
                raise OutputConflictError(self.path, changes)
            lock = working_lock(self._working, "writers.lock", shared=True, wait=False)
            self._locks.enter_context(lock)
            self._refuse_complete()  # Another may have finished it a moment before.
        except KdpipeError:
            self._locks.close()
            raise
        except OSError as error:
            self._refuse_complete()
            raise write_failure(self.path, error) from error
        return begun, begun_bytes

    def _refuse_complete(self) -> None:
        if store_state(self.path) == "complete":
            raise StoreFormatError(self.path, "is complete", "Remove it, or give another --out")

    def _fitting(self) -> list[Record]:
        """As many pending records as fit into the shard; a new shard when none does."""
        if self._journal is None or not self._journal.has_room(len(self._pending[0].content)):
            if self._journal is not None:
                self._journal.close()
                self._journal = None
            self._journal = Journal(self._working, self.writer, self._shard_bytes)
        size = count = 0
        for record in self._pending:
            size += len(record.content)
            if not self._journal.has_room(size):
                break
            count += 1
        return self._pending[:count]

    def _commit(self, records: list[Record]) -> None:
        assert self._journal is not None
        ids = {record.id for record in records}
        fidelity = {key: sums for key, sums in self._fidelity.items() if key in ids}
        self._journal.commit(records, fidelity)
        del self._pending[: len(records)]
        self._pending_bytes -= sum(len(record.content) for record in records)
        self._fidelity = {key: sums for key, sums in self._fidelity.items() if key not in ids}

    def _divergence(self, record: Record, dense: DensePosteriors) -> list[float]:
        batch = decode_records([record], self.header)
        frames = kl_to_stored(dense[0], batch.frames.utterance(0))
        tokens = kl_to_stored(dense[1], batch.tokens.utterance(0))
        return [float(frames.sum()), float(len(frames)), float(tokens.sum()), float(len(tokens))]

    def _waited(self) -> float:
        return time.monotonic() - self._flushed

    def _release(self) -> None:
        self._closed = True
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        self._locks.close()
        self._known.clear()


def write_failure(path: Path, error: OSError) -> StoreWriteError:
    """What to tell the user when the disk refuses."""
    return StoreWriteError(
        path,
        f"cannot write ({error.strerror or error})",
        "Make room, mend its rights or give another path, then run the same command again",
    )


def _stamped(header: StoreHeader) -> StoreHeader:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return replace(
        header,
        created=header.created or now,
        id_bytes=header.id_bytes or smallest_id_bytes(header.tokenizer.vocab_size),
        kdpipe_version=header.kdpipe_version or importlib.metadata.version("kdpipe"),
    )


def _changes(begun: StoreHeader, asked: StoreHeader) -> list[str]:
    before, after = begun.settings(), asked.settings()
    return [
        f"{name}: {before[name]!r:.80} then, {after[name]!r:.80} now"
        for name in before
        if before[name] != after[name]
    ]
