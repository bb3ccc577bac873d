"""Files that are either whole or absent, their digests, and locks."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kdpipe.errors import DataError, OutputWriteError

__all__ = [
    "NO_LOCKS",
    "atomic_write_bytes",
    "atomic_write_text",
    "held_lock",
    "json_digest",
    "read_json",
    "read_jsonl",
    "sha256_file",
    "sync_folder",
    "write_json",
    "write_jsonl",
]

NOT_JSON = (ValueError, RecursionError)
"""What reading bad JSON raises: bad syntax, bad UTF-8, numbers of thousands of digits, too deep."""
FOLDERS_NOT_SYNCED = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}
"""How a file system (CIFS, some FUSE) says that it syncs no folders: renames are its own care."""
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF}
"""How a file system says that it has no locks."""


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable, as far as its file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in FOLDERS_NOT_SYNCED:
            raise
    finally:
        os.close(handle)


@contextmanager
def held_lock(place: Path, shared: bool = False, wait: bool = True) -> Iterator[int]:
    """Hold the advisory lock of a file, which is made if need be; a dying process frees it.

    Yields the file's descriptor. Raises `BlockingIOError` when another holds it and `wait` is
    false, other `OSError`s where the file cannot be opened or its file system has no locks.
    """
    handle = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(handle, mode if wait else mode | fcntl.LOCK_NB)
        try:
            yield handle
        finally:
            # Not by closing alone: a process that was forked meanwhile has the file open too.
            fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write `path` so that a crash leaves the old file or the new one, never a part.

    Raises `OutputWriteError` where something else than a file (a device, a folder) has the name.
    """
    if path.exists() and not path.is_file():
        raise OutputWriteError(path, "it is no ordinary file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def atomic_write_text(path: Path, content: str) -> None:
    """`atomic_write_bytes` for UTF-8 text."""
    atomic_write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: object) -> None:
    """Write indented JSON atomically."""
    atomic_write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> object:
    """Read a JSON file; a damaged one is a `DataError` that names it."""
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except NOT_JSON as error:
        raise DataError(str(path), f"not JSON ({error})", "Restore or remake the file") from error
    return content


def write_jsonl(path: Path, records: Iterable[Mapping[str, object]]) -> None:
    """Write one JSON object a line, atomically."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    atomic_write_text(path, "".join(lines))


def read_jsonl(path: Path) -> Iterator[dict[str, object]]:
    """Yield the objects of a JSON-lines file; blank lines are passed over.

    Raises `DataError` naming the line that is not a JSON object.
    """
    with path.open(encoding="utf-8") as handle:
        for number, line in enumerate(handle, start=1):
            if line.strip():
                yield _parse_object(line, f"{path}:{number}")


def _parse_object(line: str, where: str) -> dict[str, object]:
    try:
        record: object = json.loads(line)
    except NOT_JSON as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise DataError(where, f"not JSON ({reason})", "Mend or remove the line") from error
    if not isinstance(record, dict):
        raise DataError(where, "not a JSON object", "Write one object a line")
    return record


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def json_digest(content: object) -> str:
    """Hex SHA-256 of the canonical JSON of `content` (sorted keys, no spaces)."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()
