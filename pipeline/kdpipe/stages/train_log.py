"""train.jsonl: every loss term by name, per log step and per epoch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdpipe.errors import DataError
from kdpipe.files import sync_folder, write_jsonl
from kdpipe.stages.tensorboard import Mirror

__all__ = ["TrainLog"]


class TrainLog:
    """Running means of the loss terms, written as JSON lines.

    A `step` record holds means since the last one, an `epoch` record those of the epoch and
    the dev metrics as `dev_NAME`. On resume, records past the last checkpoint are dropped.
    `mirror` is given every record too.
    """

    def __init__(self, path: Path, resume_epoch: int, mirror: Mirror | None = None) -> None:
        self.path = path
        self._mirror = mirror
        self._since_step = _Means()
        self._since_epoch = _Means()
        self._last_epoch: dict[str, float] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            write_jsonl(path, _records_until(path, resume_epoch))

    def add(self, values: Mapping[str, float], audio_seconds: float) -> None:
        """Count one batch's loss terms."""
        for means in (self._since_step, self._since_epoch):
            means.add(values, audio_seconds)

    def add_update(self, gradient_norm: float, seconds: float) -> None:
        """Count one optimizer step and the seconds it took."""
        for means in (self._since_step, self._since_epoch):
            means.add_update(gradient_norm, seconds)

    def write_step(self, epoch: int, step: int, rate: float) -> None:
        """Append the means since the last step record."""
        self._write({"type": "step", "epoch": epoch, "step": step}, rate, self._since_step, {})
        self._since_step = _Means()

    def write_epoch(
        self, epoch: int, step: int, rate: float, dev: Mapping[str, float], dev_seconds: float
    ) -> None:
        """Append the epoch's means and dev metrics; the log is on the disk when this returns."""
        extra = {f"dev_{name}": value for name, value in dev.items()}
        extra["dev_seconds"] = round(dev_seconds, 3)
        self._last_epoch = {**self._since_epoch.losses(), **extra}
        self._write({"type": "epoch", "epoch": epoch, "step": step}, rate, self._since_epoch, extra)
        self._sync()
        self._since_epoch = _Means()
        self._since_step = _Means()

    def summary(self) -> dict[str, str]:
        """What the progress bar shows of the last epoch."""
        shown = ("total", "dev_cer")
        return {k: f"{self._last_epoch[k]:.3f}" for k in shown if k in self._last_epoch}

    def _write(
        self, head: dict[str, object], rate: float, means: _Means, extra: Mapping[str, float]
    ) -> None:
        record = {**head, "learning_rate": rate, **means.record(), **extra}
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(record) + "\n")
        if self._mirror is not None:
            self._mirror(record)

    def _sync(self) -> None:
        """Checkpoints outlive a power cut: so must the records of the epochs they hold."""
        with self.path.open("ab") as handle:
            os.fsync(handle.fileno())
        sync_folder(self.path.parent)


class _Means:
    """Sums on the way to means."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._batches = 0
        self._audio = 0.0
        self._seconds = 0.0
        self._norms: list[float] = []

    def add(self, values: Mapping[str, float], audio_seconds: float) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._batches += 1
        self._audio += audio_seconds

    def add_update(self, gradient_norm: float, seconds: float) -> None:
        self._norms.append(gradient_norm)
        self._seconds += seconds

    def losses(self) -> dict[str, float]:
        return {name: total / max(1, self._batches) for name, total in self._sums.items()}

    def record(self) -> dict[str, float]:
        return {
            **self.losses(),
            "gradient_norm": sum(self._norms) / max(1, len(self._norms)),
            "audio_seconds_per_second": round(self._audio / max(1e-9, self._seconds), 2),
            "seconds": round(self._seconds, 3),
        }


def _records_until(path: Path, epoch: int) -> list[dict[str, object]]:
    """Records of the epochs that a checkpoint holds, as far as the log goes.

    A power cut can leave a log whose end is torn or full of zeros: what no longer reads there is
    left out. Raises `DataError` for such a line before whole records, which no crash leaves.
    """
    if epoch == 0:
        return []
    lines = path.read_bytes().splitlines()
    kept: list[dict[str, object]] = []
    for index, line in enumerate(lines):
        record = _record(line)
        if record is not None:
            kept.append(record)
        elif line.strip():
            _require_end(f"{path}:{index + 1}", lines[index + 1 :])
            break
        if record and record.get("type") == "epoch" and record.get("epoch") == epoch:
            break
    return kept


def _record(line: bytes) -> dict[str, object] | None:
    try:
        record: object = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _require_end(where: str, following: Sequence[bytes]) -> None:
    """Refuse a damaged line at `where` that whole records follow."""
    if any(_record(line) is not None for line in following):
        raise DataError(where, "not a JSON object, but whole records follow",
                        "Mend or remove the line")  # fmt: skip
