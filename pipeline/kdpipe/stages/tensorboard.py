"""The scalars of train.jsonl as TensorBoard events beside it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from kdpipe.errors import DependencyError

__all__ = ["HEAD", "Mirror", "open_events", "require_tensorboard"]

Mirror = Callable[[Mapping[str, Any]], None]
"""Takes each record of train.jsonl as it is written."""

HEAD = ("type", "epoch", "step")
"""Keys of a record that say where it belongs."""


def require_tensorboard() -> ModuleType:
    """What writes events; `DependencyError` naming the extra when it is not installed."""
    try:
        from tensorboardX import event_file_writer
    except ImportError as error:
        raise DependencyError("tensorboardX", "tensorboard", "--tensorboard") from error
    module: ModuleType = event_file_writer
    return module


@contextmanager
def open_events(folder: Path | None, step: int) -> Iterator[Mirror | None]:
    """Write records as scalars `step/NAME` and `epoch/NAME` into `folder`, by optimizer step.

    A resumed run gives the last `step` of its checkpoint: what a broken-off one wrote beyond it
    is not shown. Every record is on the disk when it was given. (The package's usual writer
    hands events to a thread and keeps all of them in memory.) Without a folder there is None.
    """
    if folder is None:
        yield None
        return
    module = require_tensorboard()
    protocol = module.event_pb2
    folder.mkdir(parents=True, exist_ok=True)
    writer = module.EventsWriter(str(folder / "events"), f".{os.getpid()}.{time.time_ns()}")
    if step:
        start = protocol.SessionLog(status=protocol.SessionLog.START)
        writer.write_event(protocol.Event(step=step + 1, wall_time=time.time(), session_log=start))

    def mirror(record: Mapping[str, Any]) -> None:
        event = protocol.Event(step=record["step"], wall_time=time.time())
        for name, value in record.items():
            if name not in HEAD:
                event.summary.value.add(tag=f"{record['type']}/{name}", simple_value=value)
        writer.write_event(event)
        writer.flush()

    with closing(writer):
        yield mirror
