"""TensorBoard's events hold what train.jsonl holds."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdpipe.files import read_jsonl
from kdpipe.stages.tensorboard import HEAD, open_events
from kdpipe.stages.train_teacher import train_teacher
from kdpipe.testing import tiny_recipe

event_pb2 = pytest.importorskip(
    "tensorboardX.proto.event_pb2", reason="needs tensorboardX: pip install '.[tensorboard]'"
)


def read_events(folder: Path) -> Iterator[Any]:
    """The events of every file: records of length, checksum, content, checksum."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            yield event_pb2.Event.FromString(content[place + 12 : place + 12 + length])
            place += length + 16


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    return {
        (value.tag, event.step): value.simple_value
        for event in read_events(folder)
        for value in event.summary.value
    }


def test_events_are_the_records_of_train_jsonl(tiny_folder: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe("teacher.training.epochs=2")
    events = tmp_path / "model" / "tensorboard"
    train_teacher(tiny_folder, recipe, tmp_path / "model", 0, "cpu", events)
    expected = {
        (f"{record['type']}/{name}", int(str(record["step"]))): float(str(value))
        for record in read_jsonl(tmp_path / "model" / "train.jsonl")
        for name, value in record.items()
        if name not in HEAD
    }
    found = scalars(events)
    assert {tag for tag, _ in found} >= {"step/total", "epoch/ctc", "epoch/dev_cer"}
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_resumed_run_takes_back_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    record = {"type": "step", "epoch": 1, "step": 6, "total": 1.0}
    for step in (0, 4):
        with open_events(tmp_path, step) as mirror:
            assert mirror is not None
            mirror({**record, "step": step + 2})
    starts = [event.step for event in read_events(tmp_path) if event.HasField("session_log")]
    assert starts == [5]
