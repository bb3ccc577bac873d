"""train.jsonl after a crash: what a checkpoint holds stays, what a power cut left does not stop."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdpipe.errors import DataError
from kdpipe.files import read_jsonl
from kdpipe.stages.train_log import TrainLog


def write_epochs(path: Path, *epochs: int) -> None:
    log = TrainLog(path, resume_epoch=epochs[0] - 1)
    for epoch in epochs:
        log.add({"total": float(epoch)}, 2.0)
        log.write_step(epoch, epoch, 0.1)
        log.write_epoch(epoch, epoch, 0.1, {"cer": 0.5}, 0.0)


def kinds(path: Path) -> list[tuple[object, object]]:
    return [(record["type"], record["epoch"]) for record in read_jsonl(path)]


def test_an_epoch_is_on_the_disk_before_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole record is synced, and so is the name of the file."""
    synced: dict[int, int] = {}
    sync = os.fsync

    def record(handle: int) -> None:
        found = os.fstat(handle)
        synced[found.st_ino] = found.st_size
        sync(handle)

    monkeypatch.setattr(os, "fsync", record)
    path = tmp_path / "train.jsonl"
    write_epochs(path, 1)
    assert synced[path.stat().st_ino] == path.stat().st_size
    assert tmp_path.stat().st_ino in synced


@pytest.mark.parametrize(
    "tail",
    [
        b'{"type": "epoch", "epo',
        b'{"type": "step"' + bytes(100),
        bytes(100),
        bytes(10) + b"\n" + bytes(10) + b"\n\n",
        b'{"type": "st\xe4',
        b"12",
    ],
)
@pytest.mark.parametrize("checkpoint", [1, 2, 3])
def test_a_log_with_a_torn_end_is_gone_on_with(
    tail: bytes, checkpoint: int, tmp_path: Path
) -> None:
    """Also where it ends before the epoch of the checkpoint."""
    path = tmp_path / "train.jsonl"
    write_epochs(path, 1, 2)
    with path.open("ab") as handle:
        handle.write(tail)
    write_epochs(path, checkpoint + 1)
    kept = [epoch for epoch in (1, 2) if epoch <= checkpoint] + [checkpoint + 1]
    assert kinds(path) == [(kind, epoch) for epoch in kept for kind in ("step", "epoch")]


@pytest.mark.parametrize("damage", [b'{"type": "st', bytes(30), b"[]"])
def test_damage_in_the_middle_is_named(damage: bytes, tmp_path: Path) -> None:
    """No crash leaves it: the log is refused, and left as it is."""
    path = tmp_path / "train.jsonl"
    write_epochs(path, 1, 2)
    lines = path.read_bytes().splitlines()
    lines[2] = damage
    path.write_bytes(b"\n".join(lines) + b"\n")
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"train\.jsonl:3: not a JSON object"):
        TrainLog(path, resume_epoch=2)
    assert path.read_bytes() == before


def test_damage_that_no_checkpoint_holds_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    write_epochs(path, 1)
    with path.open("ab") as handle:
        handle.write(b'{"type": "st\n{"type": "step", "epoch": 2}\n')
    TrainLog(path, resume_epoch=1)
    assert kinds(path) == [("step", 1), ("epoch", 1)]
