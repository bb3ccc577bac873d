"""The working folder of a store: shards that only grow, and a journal of what is acknowledged.

Every writer claims a shard number of its own by creating its journal, and alone appends to that
shard and journal. A commit appends records to the shard, syncs it, appends one checked line to
the journal and syncs that: only then is it acknowledged. Bytes before the journal's last good
line never change again; bytes after it are ignored. Nobody ever appends to a journal that an
earlier process left, so a torn line can only be the last.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from kdpipe.errors import (
    BusyOutputError,
    StoreDamageError,
    StoreFormatError,
    StoreWriteError,
)
from kdpipe.files import NO_LOCKS, atomic_write_bytes, held_lock, sync_folder
from kdpipe.store.image import checked_json, sealed_json
from kdpipe.store.layout import CHUNK_BYTES, COLUMN, COLUMNS
from kdpipe.store.record import Record
from kdpipe.store.schema import StoreHeader, header_from_json, header_to_json

__all__ = [
    "Journal",
    "Ledger",
    "journal_folder",
    "read_ledger",
    "read_working_header",
    "record_digest",
    "shard_path",
    "store_lock",
    "survey_ledger",
    "working_lock",
    "write_working_header",
]


@dataclass
class Ledger:
    """All that the journals of a working folder acknowledge, in order of shard and commit.

    `rows` are rows of `table` (n, 12) without `id_end`, `digests` (n, 32); `shards` holds, by
    number, the bytes acknowledged and their CRC-32C; `fidelity` sums of KL and rows by utterance;
    `torn` names half lines that killed writers left, `damaged` all other bad lines.
    """

    ids: list[bytes] = field(default_factory=list)
    rows: list[NDArray[np.uint32]] = field(default_factory=list)
    digests: list[NDArray[np.uint8]] = field(default_factory=list)
    shards: dict[int, tuple[int, int]] = field(default_factory=dict)
    fidelity: dict[str, list[float]] = field(default_factory=dict)
    torn: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def journal_folder(working: Path) -> Path:
    """Where the journals, the header in use and the locks are until the store is finished."""
    return working / "journal"


def shard_path(working: Path, number: int) -> Path:
    """The file of one shard of `records`."""
    return working / "records" / "c" / str(number)


def record_digest(record: Record) -> bytes:
    """SHA-256 over id, lengths and bytes of a record, as FORMAT.md defines it."""
    name = record.id.encode()
    lengths = np.asarray((len(name), *record.lengths), "<u4").tobytes()
    return hashlib.sha256(lengths + name + record.content).digest()


def write_working_header(working: Path, header: StoreHeader, shard_bytes: int) -> None:
    """Record for every later writer and reader what is being written."""
    content = {
        "checksum": "00000000",
        "header": header_to_json(header),
        "shard_bytes": shard_bytes,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False).encode()
    atomic_write_bytes(journal_folder(working) / "header.json", sealed_json(text))


def read_working_header(working: Path) -> tuple[StoreHeader, int]:
    """The header in use and the size of shards."""
    text = (journal_folder(working) / "header.json").read_bytes()
    content = checked_json(text)
    if content is None:
        raise StoreDamageError(working, "journal/header.json", "its checksum does not fit")
    shard_bytes = content.get("shard_bytes")
    if not isinstance(shard_bytes, int) or not 0 < shard_bytes < 2**40 or shard_bytes % CHUNK_BYTES:
        raise StoreFormatError(working, f"shards of {shard_bytes!r:.40} bytes", "Dump again")
    return header_from_json(content.get("header"), str(working)), shard_bytes


@contextmanager
def working_lock(working: Path, name: str, shared: bool, wait: bool) -> Iterator[None]:
    """Hold an advisory lock of the working folder; the kernel frees it when a process dies.

    Raises `BusyOutputError` when another process holds it and `wait` is false.
    """
    with store_lock(journal_folder(working) / name, working, shared, wait):
        yield


@contextmanager
def store_lock(place: Path, store: Path, shared: bool, wait: bool) -> Iterator[int]:
    """Hold the lock of the file `place` and yield its descriptor; errors name the `store`."""
    with ExitStack() as held:
        try:
            handle = held.enter_context(held_lock(place, shared, wait))
        except BlockingIOError as error:
            raise BusyOutputError(store) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            problem = f"its file system has no locks ({error.strerror})"
            raise StoreWriteError(store, problem, "Write to a local disk, then copy") from error
        yield handle


class Journal:
    """One shard and its journal, both claimed by this process."""

    def __init__(self, working: Path, writer: str, shard_bytes: int) -> None:
        self.working = working
        self.shard_bytes = shard_bytes
        self.length = 0
        self.checksum = 0
        self.number, self._journal = _claim(working)
        self._journal_length = 0
        path = shard_path(working, self.number)
        self._shard = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        sync_folder(path.parent)
        self._append_line({"writer": writer, "host": os.uname().nodename, "pid": os.getpid()})
        sync_folder(journal_folder(working))

    def has_room(self, size: int) -> bool:
        """Whether `size` more bytes fit into the shard."""
        return self.length + size <= self.shard_bytes

    def commit(self, records: Sequence[Record], fidelity: dict[str, list[float]]) -> None:
        """Append records and acknowledge them; on any failure nothing of them remains."""
        content = b"".join(record.content for record in records)
        checksum = google_crc32c.extend(self.checksum, content)
        line = {
            "end": self.length + len(content),
            "crc32c": checksum,
            "ids": [record.id for record in records],
            "rows": _text(self._rows(records).tobytes()),
            "digests": _text(b"".join(record_digest(record) for record in records)),
            "fidelity": fidelity,
        }
        try:
            _write_all(self._shard, content, self.length)
            os.fsync(self._shard)
            self._append_line(line)
        except BaseException:
            os.ftruncate(self._journal, self._journal_length)
            os.ftruncate(self._shard, self.length)
            raise
        self.length += len(content)
        self.checksum = checksum

    def close(self) -> None:
        """Give up the files; what was committed stays."""
        os.close(self._shard)
        os.close(self._journal)

    def _rows(self, records: Sequence[Record]) -> NDArray[np.uint32]:
        rows = np.zeros((len(records), len(COLUMNS)), "<u4")
        sizes = np.asarray([len(record.content) for record in records], np.int64)
        start = self.number * self.shard_bytes + self.length
        addresses = start + np.cumsum(sizes) - sizes
        rows[:, COLUMN["address_low"]] = addresses & 0xFFFFFFFF
        rows[:, COLUMN["address_high"]] = addresses >> 32
        rows[:, COLUMN["frames"] : COLUMN["crc32c"]] = [record.lengths for record in records]
        rows[:, COLUMN["crc32c"]] = [record.crc32c for record in records]
        return rows

    def _append_line(self, content: dict[str, Any]) -> None:
        line = _checked_line(content)
        _write_all(self._journal, line, self._journal_length)
        os.fsync(self._journal)
        self._journal_length += len(line)


def _claim(working: Path) -> tuple[int, int]:
    """Take the next free shard number: creating its journal succeeds for one process only."""
    folder = journal_folder(working)
    number = max((int(path.stem) for path in _journals(working)), default=-1) + 1
    while True:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            return number, os.open(folder / f"{number:06d}.jsonl", flags, 0o666)
        except FileExistsError:
            number += 1


def _journals(working: Path) -> list[Path]:
    found = journal_folder(working).glob("*.jsonl")
    return sorted((path for path in found if path.stem.isdecimal()), key=lambda p: int(p.stem))


def _write_all(handle: int, content: bytes, position: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(handle, view, position)
        view = view[written:]
        position += written


def _checked_line(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    return b"%08x %s\n" % (google_crc32c.value(text), text)


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def read_ledger(working: Path) -> Ledger:
    """Read every journal of a working folder; raises `StoreDamageError` for a damaged line."""
    ledger = survey_ledger(working)
    if ledger.damaged:
        raise StoreDamageError(working, ", ".join(ledger.damaged), "damaged")
    return ledger


def survey_ledger(working: Path) -> Ledger:
    """Read every journal of a working folder as far as it can be read.

    Half a last line, which a killed writer leaves, counts for nothing; a damaged line ends the
    good part of its journal.
    """
    ledger = Ledger()
    for path in _journals(working):
        _read_journal(path, ledger)
    return ledger


def _read_journal(path: Path, ledger: Ledger) -> None:
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.endswith(b"\n"):
                flipped = _parse_line(line[:-1]) is not None
                (ledger.damaged if flipped else ledger.torn).append(_line_name(path, number))
                return
            content = _parse_line(line[:-1])
            if content is None or not _enter(ledger, int(path.stem), content):
                ledger.damaged.append(_line_name(path, number))
                return


def _line_name(path: Path, number: int) -> str:
    return f"journal/{path.name} line {number}"


def _parse_line(line: bytes) -> dict[str, Any] | None:
    checksum, _, text = line.partition(b" ")
    if not text or checksum != b"%08x" % google_crc32c.value(text):
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _enter(ledger: Ledger, number: int, line: dict[str, Any]) -> bool:
    """Take a commit over; False when it is no line that a writer writes."""
    if "end" not in line:
        return True
    try:
        rows = np.frombuffer(base64.b64decode(line["rows"]), "<u4").reshape(-1, len(COLUMNS))
        digests = np.frombuffer(base64.b64decode(line["digests"]), np.uint8).reshape(-1, 32)
        ids = [utterance.encode() for utterance in line["ids"]]
        fidelity = {str(key): [float(n) for n in sums] for key, sums in line["fidelity"].items()}
        shard = (int(line["end"]), int(line["crc32c"]))
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        return False
    if not len(ids) == len(rows) == len(digests) or any(len(s) != 4 for s in fidelity.values()):
        return False
    ledger.shards[number] = shard
    ledger.ids.extend(ids)
    ledger.rows.append(rows)
    ledger.digests.append(digests)
    ledger.fidelity.update(fidelity)
    return True
