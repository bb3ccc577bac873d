"""An output folder belongs to one command with one set of settings.

The first run writes them to `run.json`; the same command again resumes or finds the output
complete; other settings are refused by name; two processes at once are refused. A run that
fails before it made anything leaves nothing behind.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from kdpipe.errors import BusyOutputError, DataError, OutputConflictError, OutputWriteError
from kdpipe.files import NO_LOCKS, held_lock, read_json, write_json

__all__ = ["claimed", "mark_complete", "settings_changes"]

RUN_FILE = "run.json"
LOCK = ".lock"
LONGEST_VALUE = 40
IDLE = ("workers", "log_steps")
"""Settings that change no result: a resumed training may have others."""
REFUSALS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EEXIST,
    errno.ENOTDIR,
}
"""How a disk says that an output cannot be written there."""


@contextmanager
def claimed(out: Path, settings: Mapping[str, object]) -> Iterator[bool]:
    """Hold `out` for this command; yields True where it is already complete.

    `settings` must be plain JSON. Raises `OutputConflictError` naming what differs from the
    settings the folder was made with, `BusyOutputError` while another process holds it,
    `OutputWriteError` where the disk refuses or has no locks.
    """
    with _refusals_named(out):
        made = _make_folders(out)
        begun = (out / RUN_FILE).exists()
        with ExitStack() as held:
            try:
                free = _lock(out, held)
                if free:
                    yield _compare(out, settings)
            except BaseException:
                if not begun:
                    _withdraw(out, made)
                raise
            if not free:
                raise BusyOutputError(out)


def _lock(out: Path, held: ExitStack) -> bool:
    """Lock `out` until `held` closes; False while another process holds it."""
    try:
        held.enter_context(held_lock(out / LOCK, wait=False))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        problem = f"its file system has no locks ({error.strerror})"
        raise OutputWriteError(out, problem) from error
    return True


def _make_folders(out: Path) -> list[Path]:
    """Make `out` and what lies above it; the folders that were not there, innermost first."""
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputWriteError(out, str(error.strerror)) from error
    return missing


@contextmanager
def _refusals_named(out: Path) -> Iterator[None]:
    """An `OutputWriteError` in place of the disk's own; errors about other files stay."""
    try:
        yield
    except OSError as error:
        elsewhere = error.filename and out not in (
            Path(error.filename),
            *Path(error.filename).parents,
        )
        if error.errno not in REFUSALS or elsewhere:
            raise
        raise OutputWriteError(out, str(error.strerror)) from error


def _withdraw(out: Path, made: Sequence[Path]) -> None:
    """Undo the claim of a run that made nothing: remove its files and the folders `made`."""
    present = {item.name for item in out.iterdir()}
    if RUN_FILE not in present:
        (out / LOCK).unlink(missing_ok=True)
    elif present == {RUN_FILE, LOCK}:
        (out / RUN_FILE).unlink()
        (out / LOCK).unlink()
    for folder in made:
        with suppress(OSError):
            folder.rmdir()


def _compare(out: Path, settings: Mapping[str, object]) -> bool:
    path = out / RUN_FILE
    if not path.is_file():
        if any(item.name != LOCK for item in out.iterdir()):
            raise OutputConflictError(out, (), "holds files that are not of this command")
        write_json(path, {"complete": False, "settings": dict(settings)})
        return False
    record = read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
        raise DataError(str(path), "not a run record", "Remove the folder, or give another --out")
    changes = settings_changes(_decisive(record["settings"]), _decisive(settings))
    if changes:
        raise OutputConflictError(out, changes)
    return bool(record.get("complete"))


def _decisive(settings: object) -> object:
    """The settings without the idle ones, at every depth."""
    if not isinstance(settings, Mapping):
        return settings
    return {key: _decisive(value) for key, value in settings.items() if key not in IDLE}


def mark_complete(out: Path, settings: Mapping[str, object]) -> None:
    """Record that everything the command promises is in `out`."""
    write_json(out / RUN_FILE, {"complete": True, "settings": dict(settings)})


def settings_changes(old: object, new: object, prefix: str = "") -> list[str]:
    """Each differing setting as `key: old -> new`, nested tables by dotted keys."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            change
            for key in sorted({*old, *new})
            for change in settings_changes(old.get(key), new.get(key), f"{prefix}{key}.")
        ]
    return [] if old == new else [f"{prefix.rstrip('.')}: {_short(old)} -> {_short(new)}"]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."
