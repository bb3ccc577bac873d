"""The loop that both models share: schedule, resume, averaging, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from tests.stages.linear_run import Killed, Linear, make_run, records
from torch import Tensor

from kdpipe.batching import Batch
from kdpipe.checkpoint import average_epochs, load_training_state, save_epoch
from kdpipe.config import TrainingSection
from kdpipe.errors import ModelFormatError, TrainingDivergedError
from kdpipe.features.prepared import PreparedData
from kdpipe.files import read_jsonl
from kdpipe.stages.train_log import TrainLog
from kdpipe.stages.training import (
    TrainingRun,
    learning_rate,
    make_optimizer,
    run_training,
)


def test_warmup_then_inverse_square_root() -> None:
    settings = TrainingSection(learning_rate=1.0, warmup_steps=100, schedule="noam")
    assert learning_rate(settings, 50, 0.1) == pytest.approx(0.5)
    assert learning_rate(settings, 100, 0.1) == pytest.approx(1.0)
    assert learning_rate(settings, 400, 0.9) == pytest.approx(0.5)


def test_cosine_ends_at_zero() -> None:
    settings = TrainingSection(learning_rate=1.0, warmup_steps=1, schedule="cosine")
    assert learning_rate(settings, 500, 0.5) == pytest.approx(0.5)
    assert learning_rate(settings, 900, 1.0) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("killed_after", ["epoch", "state", "mid-epoch"])
def test_a_killed_run_gives_the_losses_of_an_unbroken_one(
    tiny_data: PreparedData, tmp_path: Path, killed_after: str
) -> None:
    whole = run_training(make_run(tiny_data, tmp_path / "whole"))
    broken = make_run(tiny_data, tmp_path / "broken")
    _run_until_killed(broken, killed_after)
    resumed = run_training(make_run(tiny_data, tmp_path / "broken"))
    assert records(tmp_path / "broken") == records(tmp_path / "whole")
    assert resumed.keys() == whole.keys()
    for name in whole:
        torch.testing.assert_close(resumed[name], whole[name], rtol=0, atol=0)


def _run_until_killed(run: TrainingRun, moment: str) -> None:
    calls = {"epochs": 0, "steps": 0}
    losses = run.losses

    def dev_metrics() -> Mapping[str, float]:
        calls["epochs"] += 1
        if moment == "epoch" and calls["epochs"] == 2:
            raise Killed
        return {"cer": 0.5}

    def counted(batch: Batch, epoch: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        calls["steps"] += 1
        if moment == "mid-epoch" and epoch == 1 and calls["epochs"] == 1:
            calls["inside"] = calls.get("inside", 0) + 1
            if calls["inside"] == 3:
                raise Killed
        if moment == "state" and epoch == 2:
            raise Killed
        return losses(batch, epoch, generator)

    broken = TrainingRun(
        run.out, run.model, counted, run.split, run.cmvn, run.settings, run.seed, run.device,
        dev_metrics, run.label,
    )  # fmt: skip
    with pytest.raises(Killed):
        run_training(broken)


def test_nan_stops_with_the_term_and_the_utterances(
    tiny_data: PreparedData, tmp_path: Path
) -> None:
    run = make_run(tiny_data, tmp_path)
    broken = TrainingRun(
        run.out, run.model,
        lambda batch, epoch, generator: {
            "ctc": torch.tensor(math.nan), "total": run.model(batch.features),
        },
        run.split, run.cmvn, run.settings, 0, run.device, run.dev_metrics, "test",
    )  # fmt: skip
    with pytest.raises(TrainingDivergedError) as caught:
        run_training(broken)
    assert caught.value.term == "ctc"
    assert caught.value.step == 1
    assert caught.value.utterances


def test_averaging_is_the_mean_of_the_last_epochs(tmp_path: Path) -> None:
    model = Linear()
    for epoch, value in enumerate([1.0, 2.0, 6.0], start=1):
        torch.nn.init.constant_(model.layer.weight, value)
        save_epoch(tmp_path, epoch, model)
    average = average_epochs(tmp_path, last=2)
    assert torch.all(average["layer.weight"] == 4.0)


def test_a_state_of_another_model_is_refused(tiny_data: PreparedData, tmp_path: Path) -> None:
    run_training(make_run(tiny_data, tmp_path))
    other = torch.nn.Linear(3, 4)
    with pytest.raises(ModelFormatError, match="not of this model"):
        load_training_state(tmp_path, other, make_optimizer(other, 0.0))


def test_the_log_drops_what_no_checkpoint_holds(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    log = TrainLog(path, resume_epoch=0)
    for epoch in (1, 2):
        log.add({"total": float(epoch)}, 2.0)
        log.add_update(1.0, 0.5)
        log.write_epoch(epoch, epoch, 0.1, {}, 0.0)
    with path.open("a") as handle:
        handle.write('{"type": "st')
    TrainLog(path, resume_epoch=1)
    assert [record["epoch"] for record in read_jsonl(path)] == [1]
    first = next(iter(read_jsonl(path)))
    assert first["total"] == 1.0
    assert first["audio_seconds_per_second"] == 4.0
