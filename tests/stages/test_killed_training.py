"""A training killed between two files of a checkpoint goes on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.stages.linear_run import Killed, checkpoints, make_run, records
from torch import Tensor

from kdpipe.batching import Batch
from kdpipe.features.prepared import PreparedData
from kdpipe.stages import training
from kdpipe.stages.teacher_dump import DumpSettings, Shard, teacher_dump
from kdpipe.stages.train_student import train_student
from kdpipe.stages.training import TrainingRun, run_training
from kdpipe.testing import random_model, tiny_recipe

DUMP = DumpSettings(top_k=8, nbest=2, beam=2, batch_frames=2000)


def kill_at_call(
    monkeypatch: pytest.MonkeyPatch, name: str, call: int, after: bool = False
) -> None:
    """Kill the training before (or after) its `call`th call, from 1, of the function `name`."""
    original: Callable[..., object] = getattr(training, name)
    calls = 0

    def killing(*arguments: Any, **keywords: Any) -> object:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise Killed
        result = original(*arguments, **keywords)
        if calls == call:
            raise Killed
        return result

    monkeypatch.setattr(training, name, killing)


def epochs_of(run: TrainingRun) -> tuple[TrainingRun, set[int]]:
    """The run, and the set that the epochs it trains will be in."""
    seen: set[int] = set()

    def losses(batch: Batch, epoch: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        seen.add(epoch)
        return run.losses(batch, epoch, generator)

    return replace(run, losses=losses), seen


@pytest.fixture(scope="module")
def whole(tiny_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole")
    torch.save(run_training(make_run(tiny_data, out)), out / "average.pt")
    return out


@pytest.mark.parametrize("epoch", [1, 2, 3])
@pytest.mark.parametrize("before", ["save_epoch", "save_training_state", "prune_epochs"])
def test_a_kill_between_the_files_of_a_checkpoint_changes_nothing(
    tiny_data: PreparedData,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: str,
    epoch: int,
) -> None:
    with monkeypatch.context() as patch:
        kill_at_call(patch, before, epoch)
        with pytest.raises(Killed):
            run_training(make_run(tiny_data, tmp_path))
    again, epochs = epochs_of(make_run(tiny_data, tmp_path))
    resumed = run_training(again)
    assert epochs == set(range(epoch - 1, 3))
    assert records(tmp_path) == records(whole)
    expected = torch.load(whole / "average.pt")
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    assert _states(tmp_path) == _states(whole)


def _states(out: Path) -> dict[str, bytes]:
    """Every checkpoint's content."""
    return {name: (out / "checkpoints" / name).read_bytes() for name in checkpoints(out)}


def test_a_kill_while_the_state_is_written_leaves_the_last_one(
    tiny_data: PreparedData, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.replace

    def torn(self: Path, target: Path) -> Path:
        if target.name == "last.safetensors" and target.exists():
            raise Killed
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", torn)
        with pytest.raises(Killed):
            run_training(make_run(tiny_data, tmp_path))
    again, epochs = epochs_of(make_run(tiny_data, tmp_path))
    run_training(again)
    assert epochs == {1, 2}
    assert records(tmp_path) == records(whole)
    assert _states(tmp_path) == _states(whole)


@pytest.fixture(scope="module")
def store(tiny_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("store")
    teacher = random_model(tiny_data, out / "teacher", "ar")
    teacher_dump(tiny_data.folder, "train", teacher, out / "train.zarr", DUMP, Shard(), "cpu")
    return out / "train.zarr"


def test_a_distilled_student_broken_after_an_epoch_equals_an_unbroken_one(
    tiny_data: PreparedData, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe("specaugment.time_masks=1", "student.model.dropout=0.2")
    whole, broken = tmp_path / "whole" / "student", tmp_path / "broken" / "student"

    def train(out: Path) -> bool:
        return train_student(tiny_data.folder, recipe, out, str(store), 0, "cpu")

    assert train(whole)
    with monkeypatch.context() as patch:
        kill_at_call(patch, "save_training_state", 1, after=True)
        with pytest.raises(Killed):
            train(broken)
    assert checkpoints(broken) == {"epoch-00001.safetensors", "last.safetensors"}
    assert train(broken)
    assert records(broken) == records(whole)
    assert _states(broken) == _states(whole)
    for file in ("weights.safetensors", "model.toml"):
        assert (broken / file).read_bytes() == (whole / file).read_bytes()
