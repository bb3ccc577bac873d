"""Named errors: every one carries its data, inherits a builtin, and says what to do.

The command line prints a `KdpipeError` as one or two lines and exits with 1; anything
else is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path

__all__ = [
    "AlignmentError",
    "BusyOutputError",
    "ConfigError",
    "DataError",
    "DependencyError",
    "DeviceError",
    "InputNotFoundError",
    "KdpipeError",
    "MismatchError",
    "ModelFormatError",
    "OutputConflictError",
    "OutputWriteError",
    "StoreDamageError",
    "StoreFormatError",
    "StoreIncompleteError",
    "StoreWriteError",
    "TooManyRejectedError",
    "TrainingDivergedError",
    "UtteranceNotFoundError",
    "UtteranceTooLongError",
    "WorkerDiedError",
    "did_you_mean",
]

MOST_CHANGES, LONGEST_CHANGE = 4, 120
LONGEST_VALUE = 60


def _brief(value: str) -> str:
    """A value for a message, cut to what a line can bear."""
    return value if len(value) <= LONGEST_VALUE else f"{value[: LONGEST_VALUE - 3]}..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence that offers the known word nearest to `word`, or all of them."""
    words = list(known)
    near = difflib.get_close_matches(word, words, n=1)
    return f"Did you mean {near[0]}?" if near else f"There is: {', '.join(words) or 'nothing'}"


class KdpipeError(Exception):
    """Base of every error a user can cause and mend.

    `message` says what is wrong, `remedy` what to do about it.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message}. {remedy}")
        self.message = message
        self.remedy = remedy

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross processes whole, whatever their own arguments are."""
        return _restore, (type(self), self.args, self.__dict__)


def _restore(
    kind: type[KdpipeError], arguments: tuple[object, ...], state: dict[str, object]
) -> KdpipeError:
    error = kind.__new__(kind)
    error.args = arguments
    error.__dict__.update(state)
    return error


class ConfigError(KdpipeError, ValueError):
    """A configuration key that is unknown, of the wrong type, or out of range."""

    def __init__(self, source: str, key: str, value: object, problem: str, remedy: str) -> None:
        given = "" if value is None else f" = {_brief(repr(value))}"
        super().__init__(f"{source}: {key}{given}: {problem}", remedy)
        self.source = source
        self.key = key
        self.value = value
        self.problem = problem


class InputNotFoundError(KdpipeError, FileNotFoundError):
    """A path given by the user that is not there, or is not what it should be."""

    def __init__(self, path: Path | str, expected: str, remedy: str) -> None:
        super().__init__(f"{path}: no {expected} there", remedy)
        self.path = Path(path)
        self.expected = expected


class DataError(KdpipeError, ValueError):
    """Input that cannot be read as what it claims to be; `where` is a file, line or id."""

    def __init__(self, where: str, problem: str, remedy: str) -> None:
        super().__init__(f"{where}: {problem}", remedy)
        self.where = where
        self.problem = problem


class TooManyRejectedError(KdpipeError, ValueError):
    """More utterances were unusable than the setting allows."""

    def __init__(
        self, split: str, rejected: int, total: int, limit: float, reasons: Mapping[str, int]
    ) -> None:
        listed = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
        super().__init__(
            f"{split}: {rejected} of {total} utterances cannot be used ({listed}),"
            f" more than the allowed fraction {limit:g}",
            "See rejected.jsonl in the output folder, mend them, or raise --max-rejected",
        )
        self.split = split
        self.rejected = rejected
        self.total = total
        self.limit = limit
        self.reasons = dict(reasons)


class MismatchError(KdpipeError, ValueError):
    """Two artefacts that must agree do not; names both sides."""

    def __init__(self, what: str, ours: object, theirs: object, remedy: str) -> None:
        sides = f"{_brief(str(ours))} here, {_brief(str(theirs))} there"
        super().__init__(f"{what} must agree: {sides}", remedy)
        self.what = what
        self.ours = ours
        self.theirs = theirs


class OutputConflictError(KdpipeError, FileExistsError):
    """An output exists that was made with other settings, or by something else."""

    def __init__(
        self, path: Path, changes: Iterable[str], problem: str = "was made with other settings"
    ) -> None:
        self.path = path
        self.changes = tuple(changes)
        shown = [change[:LONGEST_CHANGE] for change in self.changes[:MOST_CHANGES]]
        if len(self.changes) > MOST_CHANGES:
            shown.append(f"{len(self.changes) - MOST_CHANGES} more")
        listed = f" ({'; '.join(shown)})" if shown else ""
        again = "repeat the old settings to resume, " if shown else ""
        super().__init__(f"{path} {problem}{listed}", f"Give another --out, {again}or remove it")


class ModelFormatError(KdpipeError, ValueError):
    """A model directory that is incomplete, damaged, or of an unknown kind."""

    def __init__(self, path: Path | str, problem: str, remedy: str) -> None:
        super().__init__(f"{path}: {problem}", remedy)
        self.path = Path(path)
        self.problem = problem


class TrainingDivergedError(KdpipeError, ArithmeticError):
    """A loss or gradient stopped being finite."""

    def __init__(self, step: int, term: str, utterances: Iterable[str]) -> None:
        self.step = step
        self.term = term
        self.utterances = tuple(utterances)
        super().__init__(
            f"step {step}: {term} is not finite (batch: {', '.join(self.utterances[:4])} ...)",
            "Lower learning_rate or raise warmup_steps of the recipe's [teacher.training] or"
            " [student.training], for example --set student.training.learning_rate=1e-3, and give"
            " another --out",
        )


class DependencyError(KdpipeError, ImportError):
    """An optional package is needed for what was asked."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package}",
            f"Install kdpipe with its extra: pip install '.[{extra}]' where its pyproject.toml is",
        )
        self.package = package
        self.extra = extra


class BusyOutputError(KdpipeError, BlockingIOError):
    """Another process is writing the same output."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} is being written by another process",
            "Wait for it, stop it, or give another --out",
        )
        self.path = path


class DeviceError(KdpipeError, RuntimeError):
    """A device was asked for that this machine does not have."""

    def __init__(self, device: str) -> None:
        super().__init__(f"no {device} device on this machine", "Use --device cpu or auto")
        self.device = device


class AlignmentError(KdpipeError, ValueError):
    """Label sequences that CTC cannot align: they need more frames than the encoder gives.

    `rows` are positions in the batch; `needed` and `available` count encoder frames of each.
    """

    def __init__(
        self, rows: Iterable[int], needed: Iterable[int], available: Iterable[int]
    ) -> None:
        self.rows = tuple(rows)
        self.needed = tuple(needed)
        self.available = tuple(available)
        super().__init__(
            f"CTC cannot align row {self.rows[0]} of the batch: it needs {self.needed[0]} encoder"
            f" frames and has {self.available[0]} ({len(self.rows)} such rows)",
            "Prepare the data again: it rejects such utterances; slower --speed factors give more"
            " frames, larger vocabularies fewer tokens",
        )


class StoreFormatError(KdpipeError, ValueError):
    """A path that is no teacher store, is of a newer format, or claims what cannot be."""

    def __init__(self, path: Path | str, problem: str, remedy: str) -> None:
        super().__init__(f"{path}: {problem}", remedy)
        self.path = str(path)
        self.problem = problem


class StoreDamageError(KdpipeError, ValueError):
    """A teacher store whose bytes are not those that were written."""

    def __init__(self, path: Path | str, part: str, problem: str, ids: Iterable[str] = ()) -> None:
        self.path = str(path)
        self.part = part
        self.problem = problem
        self.ids = tuple(ids)
        named = f" (utterances {', '.join(self.ids[:4])}{' ...' * (len(self.ids) > 4)})"
        super().__init__(
            f"{path}: {part}: {problem}{named if self.ids else ''}",
            "Run `kdpipe store verify` to see all the damage, then copy the store again or"
            " repair it with --repair --teacher",
        )


class StoreIncompleteError(KdpipeError, ValueError):
    """A teacher store that is still being written."""

    def __init__(self, path: Path | str, utterances: int) -> None:
        super().__init__(
            f"{path} is still being written: {utterances} utterances so far",
            "Run the same teacher-dump command again to complete it (train-student --allow-partial"
            " learns from the utterances that it has)",
        )
        self.path = str(path)
        self.utterances = utterances


class StoreWriteError(KdpipeError, OSError):
    """Writing to a teacher store failed; nothing acknowledged before is lost."""

    def __init__(self, path: Path | str, problem: str, remedy: str) -> None:
        super().__init__(f"{path}: {problem}", remedy)
        self.path = str(path)
        self.problem = problem


class UtteranceTooLongError(KdpipeError, ValueError):
    """An utterance longer than a search can take in bounded memory; lengths in encoder frames."""

    def __init__(self, frames: int, limit: int) -> None:
        super().__init__(
            f"an utterance of {frames} encoder frames is longer than the limit of {limit}",
            "Split the recording at pauses and decode the parts",
        )
        self.frames = frames
        self.limit = limit


class WorkerDiedError(KdpipeError, RuntimeError):
    """A worker process was killed, most often for want of memory."""

    def __init__(self) -> None:
        super().__init__(
            "a worker process was killed, most often for want of memory",
            "Run the same command again to resume, with fewer --workers (a script of your own"
            " must be a file that makes its calls below if __name__ == '__main__')",
        )


class OutputWriteError(KdpipeError, OSError):
    """An output folder that cannot be written: a full disk, missing rights."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(
            f"{path} cannot be written: {problem}",
            "Make room, mend its rights or give another --out, then run the same command again",
        )
        self.path = path
        self.problem = problem


class UtteranceNotFoundError(KdpipeError, KeyError):
    """An utterance that a teacher store does not hold."""

    def __init__(self, path: Path | str, utterance: str) -> None:
        super().__init__(
            f"{path} holds no utterance {utterance!r}",
            "Check the id, or dump the split that it is of",
        )
        self.path = str(path)
        self.utterance = utterance

    def __str__(self) -> str:
        return f"{self.message}. {self.remedy}"
