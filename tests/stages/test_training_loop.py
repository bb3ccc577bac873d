"""What the loop does at every update and every epoch: rate, mode, gradient, precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.stages.linear_run import (
    SETTINGS,
    Linear,
    before_every_update,
    checkpoints,
    gradient_of,
    logged,
    make_run,
)
from torch import Tensor, nn
from torch.optim import Optimizer

from kdpipe.batching import Batch, sorted_batches
from kdpipe.config import TrainingSection
from kdpipe.features.prepared import PreparedData
from kdpipe.stages.build import fresh_model
from kdpipe.stages.dev_metrics import dev_scorer
from kdpipe.stages.train_student import student_losses
from kdpipe.stages.training import (
    TrainingRun,
    autocast,
    learning_rate,
    make_optimizer,
    rehearse,
    run_training,
)
from kdpipe.testing import tiny_recipe
from kdpipe.text.tokenizer import Tokenizer

CPU = torch.device("cpu")


def float32(**changes: object) -> TrainingSection:
    """Settings of a run whose numbers are compared, one log line an update."""
    return replace(SETTINGS, precision="float32", log_steps=1, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", ["noam", "cosine"])
def test_every_update_is_made_at_the_rate_of_the_schedule(
    tiny_data: PreparedData, tmp_path: Path, schedule: str
) -> None:
    settings = float32(schedule=schedule, warmup_steps=2)
    found: list[float] = []

    def watch(optimizer: Optimizer) -> None:
        (rate,) = {float(group["lr"]) for group in optimizer.param_groups}
        found.append(rate)

    with before_every_update(watch):
        run_training(make_run(tiny_data, tmp_path, settings))
    expected = _schedule(settings, [int(step) for step in logged(tmp_path, "epoch", "step")])
    assert found == pytest.approx(expected)
    assert logged(tmp_path, "step", "learning_rate") == found
    assert len(set(found)) > settings.epochs


def _schedule(settings: TrainingSection, last_steps: list[int]) -> list[float]:
    """The rate of every update of epochs that end at `last_steps`."""
    rates, before = [], 0
    for epoch, last in enumerate(last_steps):
        for step in range(before + 1, last + 1):
            done = (epoch + (step - before - 1) / (last - before)) / settings.epochs
            rates.append(learning_rate(settings, step, done))
        before = last
    return rates


def test_losses_see_the_model_in_training_mode_after_every_dev_score(
    tiny_data: PreparedData, tmp_path: Path
) -> None:
    run = make_run(tiny_data, tmp_path)
    modes: dict[int, set[bool]] = {}

    def losses(batch: Batch, epoch: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        modes.setdefault(epoch, set()).add(run.model.training)
        return run.losses(batch, epoch, generator)

    def dev_metrics() -> Mapping[str, float]:
        run.model.eval()
        return {"cer": 0.5}

    run.model.eval()
    run_training(replace(run, losses=losses, dev_metrics=dev_metrics))
    assert modes == {0: {True}, 1: {True}, 2: {True}}


def test_a_rehearsal_meets_the_last_stage_and_the_largest_batches_and_changes_nothing(
    tiny_data: PreparedData, tmp_path: Path
) -> None:
    tokenizer, recipe = Tokenizer.load(tiny_data.tokenizer), tiny_recipe()
    model = fresh_model(recipe.student.model, "mask-ctc", tokenizer, 0, CPU)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = student_losses(model, recipe, None)
    seen: list[tuple[int, int, int]] = []

    def watched(batch: Batch, epoch: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        seen.append((epoch, int(batch.feature_lengths.max()), len(batch.ids)))
        return losses(batch, epoch, generator)

    settings = float32(epochs=7)
    run = replace(make_run(tiny_data, tmp_path, settings), model=model, losses=watched)
    rehearse(run)
    counts = tiny_data.split("train").frame_counts.tolist()
    most = max(len(batch) for batch in sorted_batches(counts, settings.batch_frames, 512))
    (first_epoch, longest, _), (second_epoch, _, utterances) = seen
    assert (first_epoch, second_epoch) == (6, 6)
    assert (longest, utterances) == (max(counts), most)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not list(tmp_path.iterdir())


def test_the_dev_split_is_scored_in_evaluation_mode(tiny_data: PreparedData) -> None:
    tokenizer = Tokenizer.load(tiny_data.tokenizer)
    section = tiny_recipe("student.model.dropout=0.9").student.model
    model = fresh_model(section, "mask-ctc", tokenizer, 0, CPU)
    score = dev_scorer(model, tiny_data.split("dev"), tiny_data.cmvn, tokenizer, 1200, CPU)
    modes: list[bool] = []

    def watch(module: nn.Module, args: object) -> None:
        modes.append(any(part.training for part in module.modules()))

    handles = [part.register_forward_pre_hook(watch) for part in (model.encoder, model.ctc.ctc_lo)]
    model.train()
    score()
    for handle in handles:
        handle.remove()
    assert set(modes) == {False}


def test_the_gradient_is_clipped_to_the_largest_norm(
    tiny_data: PreparedData, tmp_path: Path
) -> None:
    norms: list[float] = []
    with before_every_update(lambda optimizer: norms.append(float(gradient_of(optimizer).norm()))):
        run_training(make_run(tiny_data, tmp_path, float32(gradient_clip=0.5)))
    before = logged(tmp_path, "step", "gradient_norm")
    assert min(before) < 0.5 < max(before)
    assert norms == pytest.approx([min(norm, 0.5) for norm in before], rel=1e-3)


def test_biases_and_norms_do_not_decay(tiny_data: PreparedData) -> None:
    tokenizer = Tokenizer.load(tiny_data.tokenizer)
    model = fresh_model(tiny_recipe().student.model, "mask-ctc", tokenizer, 0, CPU)
    optimizer = make_optimizer(model, 0.25)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decayed = set()
    for name, value in model.named_parameters():
        if not torch.equal(value, before[name]):
            decayed.add(name)
            torch.testing.assert_close(value, 0.75 * before[name])
    matrices = {name for name, value in before.items() if value.ndim >= 2}
    assert decayed == matrices
    assert not [name for name in decayed if "norm" in name or name.endswith(".bias")]


def test_the_recipes_weight_decay_is_the_optimizers(
    tiny_data: PreparedData, tmp_path: Path
) -> None:
    run = make_run(tiny_data, tmp_path, replace(SETTINGS, epochs=1, weight_decay=0.125))
    found: list[list[tuple[float, int]]] = []

    def watch(optimizer: Optimizer) -> None:
        groups = optimizer.param_groups
        found.append([(group["weight_decay"], p.ndim) for group in groups for p in group["params"]])

    with before_every_update(watch):
        run_training(run)
    assert found[0] == [(0.125, 2), (0.0, 1)]


def test_weights_that_are_frozen_get_no_update(tiny_data: PreparedData, tmp_path: Path) -> None:
    run = make_run(tiny_data, tmp_path, replace(SETTINGS, epochs=1))
    model = run.model
    assert isinstance(model, Linear)
    model.layer.bias.requires_grad_(False)
    bias, weight = (p.detach().clone() for p in (model.layer.bias, model.layer.weight))
    trained = run_training(run)
    assert torch.equal(trained["layer.bias"], bias)
    assert not torch.equal(trained["layer.weight"], weight)


def _squares(run: TrainingRun, seen: list[Tensor]) -> TrainingRun:
    """The run with a loss without randomness, which notes its value's gradient."""
    model = run.model
    assert isinstance(model, Linear)

    def losses(batch: Batch, epoch: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        total = (model.layer(batch.features).mean() - len(batch.ids)) ** 2
        parts = torch.autograd.grad(total, list(model.parameters()), retain_graph=True)
        seen.append(torch.cat([part.flatten() for part in parts]))
        return {"total": total}

    return replace(run, losses=losses)


@pytest.mark.parametrize("accumulate", [1, 2, 1000])
def test_accumulation_takes_the_mean_gradient(
    tiny_data: PreparedData, tmp_path: Path, accumulate: int
) -> None:
    settings = float32(epochs=1, accumulate=accumulate, gradient_clip=1e6)
    seen: list[Tensor] = []
    groups: list[int] = []
    norms: list[float] = []

    def watch(optimizer: Optimizer) -> None:
        mean = torch.stack(seen).mean(0)
        torch.testing.assert_close(gradient_of(optimizer), mean)
        groups.append(len(seen))
        norms.append(float(mean.norm()))
        seen.clear()

    with before_every_update(watch):
        run_training(_squares(make_run(tiny_data, tmp_path, settings), seen))
    batches = sum(groups)
    assert batches > 2
    assert groups[:-1] == [accumulate] * ((batches - 1) // accumulate)
    assert logged(tmp_path, "step", "gradient_norm") == pytest.approx(norms)


@pytest.mark.parametrize("keep", [1, 2])
def test_only_the_epochs_to_average_are_kept_and_averaged(
    tiny_data: PreparedData, tmp_path: Path, keep: int
) -> None:
    trained = run_training(make_run(tiny_data, tmp_path, replace(SETTINGS, average_last=keep)))
    kept = {f"epoch-{epoch:05d}.safetensors" for epoch in range(4 - keep, 4)}
    assert checkpoints(tmp_path) == {*kept, "last.safetensors"}
    states = [load_file(tmp_path / "checkpoints" / name) for name in kept]
    for name, value in trained.items():
        torch.testing.assert_close(value, torch.stack([s[name] for s in states]).mean(0))


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("float32", torch.float32)]
)
def test_the_losses_are_computed_in_the_precision_asked_for(
    tiny_data: PreparedData, tmp_path: Path, precision: str, dtype: torch.dtype
) -> None:
    settings = replace(float32(), precision=precision)  # type: ignore[arg-type]
    run = make_run(tiny_data, tmp_path, settings)
    dtypes: set[torch.dtype] = set()

    def losses(batch: Batch, epoch: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        result = run.model(batch.features)
        dtypes.add(result.dtype)
        return {"total": (result - 1.0) ** 2}

    weights = run_training(replace(run, losses=losses))
    assert dtypes == {dtype}
    assert {value.dtype for value in weights.values()} == {torch.float32}
    totals = logged(tmp_path, "epoch", "total")
    assert totals[-1] < totals[0]


@pytest.mark.parametrize("instructions", ["avx512_bf16", "amx_bf16", "avx2"])
def test_auto_takes_bf16_where_the_cpu_multiplies_in_it(
    monkeypatch: pytest.MonkeyPatch, instructions: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instructions: True})
    with autocast(CPU, "auto"):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert (product.dtype == torch.bfloat16) is instructions.endswith("bf16")


def test_every_epoch_draws_anew_and_a_seed_draws_the_same(
    tiny_data: PreparedData, tmp_path: Path
) -> None:
    first, again, other = (
        _draws(replace(make_run(tiny_data, tmp_path / name), seed=seed))
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert again == first
    for which in range(3):
        values = {draw[which] for draw in first}
        assert len(values) == 3
        assert not values & {draw[which] for draw in other}


def _draws(run: TrainingRun) -> list[tuple[object, ...]]:
    """Of every epoch: what both generators draw, and what the batches hold."""
    drawn: dict[int, tuple[float, float]] = {}
    batches: dict[int, tuple[str, ...]] = {}

    def losses(batch: Batch, epoch: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        if epoch not in drawn:
            drawn[epoch] = (float(torch.rand((), generator=generator)), float(torch.rand(())))
        batches[epoch] = (*batches.get(epoch, ()), *batch.ids)
        return run.losses(batch, epoch, generator)

    run_training(replace(run, losses=losses))
    return [(*drawn[epoch], batches[epoch]) for epoch in drawn]
