"""The scalars of train.jsonl as TensorBoard events beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdpipe.errors import DependencyError

__all__ = ["Mirror", "open_events", "require_tensorboard"]

Mirror = Callable[[Mapping[str, Any]], None]
"""Takes each record of train.jsonl as it is written."""

HEAD = ("type", "epoch", "step")


def require_tensorboard() -> Any:
    """The writer class; `DependencyError` naming the extra when its package is not installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise DependencyError("tensorboardX", "tensorboard", "--tensorboard") from error
    return SummaryWriter


def open_events(folder: Path, step: int) -> Mirror:
    """Write records as scalars `step/NAME` and `epoch/NAME` into `folder`, by optimizer step.

    A resumed run gives the last `step` of its checkpoint: what a broken-off one wrote beyond it
    is not shown.
    """
    writer = require_tensorboard()(str(folder), purge_step=step + 1 if step else None)

    def mirror(record: Mapping[str, Any]) -> None:
        for name, value in record.items():
            if name not in HEAD:
                writer.add_scalar(f"{record['type']}/{name}", value, record["step"])
        writer.flush()

    return mirror
