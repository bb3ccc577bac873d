"""A run of the training loop on a model of one layer, and what tests watch of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from kdpipe.batching import Batch
from kdpipe.config import TrainingSection
from kdpipe.features.prepared import PreparedData
from kdpipe.files import read_jsonl
from kdpipe.stages.training import TrainingRun

SETTINGS = TrainingSection(
    epochs=3, batch_frames=1200, learning_rate=1e-2, warmup_steps=4, log_steps=2, average_last=2
)
TIMED = ("seconds", "audio_seconds_per_second", "dev_seconds")


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


class Linear(torch.nn.Module):
    """A model of one layer, so that the loop is what is tested."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(80, 1)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.layer(self.dropout(features)).mean()
        return result


def make_run(data: PreparedData, out: Path, settings: TrainingSection = SETTINGS) -> TrainingRun:
    torch.manual_seed(0)
    model = Linear()

    def losses(batch: Batch, epoch: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        noise = torch.randn((), generator=generator)
        total = (model(batch.features) - noise) ** 2
        return {"square": total.detach(), "total": total}

    return TrainingRun(
        out, model, losses, data.split("train"), data.cmvn, settings, 0, torch.device("cpu"),
        lambda: {"cer": 0.5}, "test",
    )  # fmt: skip


def records(out: Path) -> list[dict[str, object]]:
    """The lines of train.jsonl without what a clock gave."""
    return [
        {key: value for key, value in record.items() if key not in TIMED}
        for record in read_jsonl(out / "train.jsonl")
    ]


def logged(out: Path, kind: str, name: str) -> list[float]:
    """The values of `name` in the step or epoch records."""
    return [float(str(r[name])) for r in read_jsonl(out / "train.jsonl") if r["type"] == kind]


def checkpoints(out: Path) -> set[str]:
    return {path.name for path in (out / "checkpoints").iterdir()}


@contextmanager
def before_every_update(watch: Callable[[Optimizer], None]) -> Iterator[None]:
    """Call `watch` with the optimizer just before each of its steps."""

    def hook(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[Any, Any]) -> None:
        watch(optimizer)

    handle = register_optimizer_step_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def gradient_of(optimizer: Optimizer) -> Tensor:
    """All gradients that a step is about to use, in one row."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
