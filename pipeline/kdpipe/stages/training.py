"""The training loop that teacher and student share.

All randomness of an epoch follows from (seed, epoch), and a checkpoint is written after
every epoch: a run that was killed repeats the broken epoch and gives the unbroken run's
losses (bit for bit on a CPU with as many threads; a GPU sums in no fixed order).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from kdpipe.batching import Batch, BatchSource, batch_loader, length_buckets, sorted_batches
from kdpipe.checkpoint import (
    average_epochs,
    load_training_state,
    prune_epochs,
    save_epoch,
    save_training_state,
)
from kdpipe.config import TrainingSection
from kdpipe.errors import TrainingDivergedError
from kdpipe.features.cmvn import AnyCmvn
from kdpipe.progress import progress_bar
from kdpipe.stages.tensorboard import open_events
from kdpipe.stages.train_log import TrainLog

__all__ = [
    "StepLosses",
    "TrainingRun",
    "autocast",
    "learning_rate",
    "make_optimizer",
    "rehearse",
    "run_training",
]

StepLosses = Callable[[Batch, int, torch.Generator], Mapping[str, Tensor]]
"""Loss terms of a batch by name, `total` among them; arguments: batch, epoch, generator."""

Metrics = Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class TrainingRun:
    """One model's training: what is trained, on what, by which losses.

    `tensorboard` is a folder for the scalars of train.jsonl, or None.
    """

    out: Path
    model: nn.Module
    losses: StepLosses
    split: BatchSource
    cmvn: AnyCmvn
    settings: TrainingSection
    seed: int
    device: torch.device
    dev_metrics: Metrics
    label: str
    tensorboard: Path | None = None


def learning_rate(settings: TrainingSection, step: int, done: float) -> float:
    """The rate for update `step` (from 1) when the fraction `done` of all epochs is over."""
    if step <= settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    if settings.schedule == "cosine":
        return settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return settings.learning_rate * math.sqrt(settings.warmup_steps / step)


def make_optimizer(model: nn.Module, weight_decay: float) -> AdamW:
    """AdamW that decays matrices only: biases and norms are not pulled to zero."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=1.0, betas=(0.9, 0.98), eps=1e-9, fused=True)


def run_training(run: TrainingRun) -> dict[str, Tensor]:
    """Train to the last epoch, resuming where an earlier call stopped.

    Returns the average of the last checkpoints' weights. Raises `TrainingDivergedError` when
    a loss or the gradient stops being finite.
    """
    optimizer = make_optimizer(run.model, run.settings.weight_decay)
    epoch, step = load_training_state(run.out, run.model, optimizer)
    lengths = run.split.frame_counts.tolist()
    if epoch == 0 and run.device.type == "cuda":
        rehearse(run)
    with (
        open_events(run.tensorboard, step) as mirror,
        progress_bar(run.settings.epochs, run.label, "epoch", epoch) as bar,
    ):
        log = TrainLog(run.out / "train.jsonl", epoch, mirror)
        for current in range(epoch, run.settings.epochs):
            batches = length_buckets(
                lengths, run.settings.batch_frames, run.settings.max_utterances, run.seed, current
            )
            step = _train_epoch(run, optimizer, batches, current, step, log, bar.update)
            save_epoch(run.out, current + 1, run.model)
            # Before the state, which says that the epoch is done: no kill leaves a file too many.
            prune_epochs(run.out, keep=run.settings.average_last)
            save_training_state(run.out, run.model, optimizer, current + 1, step)
            bar.set_postfix(log.summary(), refresh=False)
    return average_epochs(run.out, run.settings.average_last)


def rehearse(run: TrainingRun) -> None:
    """Run the last epoch's losses and gradients on the largest batches, and learn nothing.

    A student's last stage needs the most memory, and its settings are those of the first: what
    does not fit fails now, not after days. The model's weights and statistics stay as they are.
    """
    limits = (run.settings.batch_frames, run.settings.max_utterances)
    batches = sorted_batches(run.split.frame_counts.tolist(), *limits)
    statistics = {name: value.clone() for name, value in run.model.named_buffers()}
    moments = [torch.empty_like(p) for p in run.model.parameters() for _ in range(2)]
    generator = torch.Generator().manual_seed(run.seed)
    run.model.train()
    for batch in batch_loader(run.split, run.cmvn, [batches[0], max(batches, key=len)]):
        with autocast(run.device, run.settings.precision):
            terms = run.losses(batch.to(run.device), run.settings.epochs - 1, generator)
        torch.autograd.backward(terms["total"])
        run.model.zero_grad(set_to_none=True)
    del moments  # Room that the optimizer takes at its first step.
    with torch.no_grad():
        for name, value in run.model.named_buffers():
            value.copy_(statistics[name])


def _train_epoch(
    run: TrainingRun,
    optimizer: AdamW,
    batches: list[list[int]],
    epoch: int,
    step: int,
    log: TrainLog,
    advance: Callable[[float], object],
) -> int:
    """One pass over the batches; returns the number of updates made so far.

    `advance` is told of every update the part of the epoch that it is.
    """
    torch.manual_seed(run.seed * 100_003 + epoch)
    generator = torch.Generator().manual_seed(run.seed * 100_003 + epoch)
    run.model.train()
    groups = _grouped(batches, run.settings.accumulate)
    loader = batch_loader(
        run.split, run.cmvn, batches, run.settings.workers, run.device.type == "cuda"
    )
    for number, size in enumerate(groups):
        step += 1
        done = (epoch + number / len(groups)) / run.settings.epochs
        rate = learning_rate(run.settings, step, done)
        started = time.perf_counter()
        group = [next(loader).to(run.device) for _ in range(size)]
        norm = _update(run, optimizer, group, (epoch, step, rate), generator, log)
        log.add_update(norm, time.perf_counter() - started)
        advance(1 / len(groups))
        if step % run.settings.log_steps == 0:
            log.write_step(epoch + 1, step, rate)
    started = time.perf_counter()
    metrics = run.dev_metrics()
    log.write_epoch(epoch + 1, step, rate, metrics, time.perf_counter() - started)
    return step


def _grouped(batches: list[list[int]], accumulate: int) -> list[int]:
    """How many batches each update of the epoch takes."""
    full, rest = divmod(len(batches), accumulate)
    return [accumulate] * full + ([rest] if rest else [])


def _update(
    run: TrainingRun,
    optimizer: AdamW,
    group: list[Batch],
    where: tuple[int, int, float],
    generator: torch.Generator,
    log: TrainLog,
) -> float:
    """One optimizer step on the mean gradient of the group's batches; returns its norm."""
    epoch, step, rate = where
    for parameters in optimizer.param_groups:
        parameters["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    for batch in group:
        with autocast(run.device, run.settings.precision):
            terms = run.losses(batch, epoch, generator)
        torch.autograd.backward(terms["total"] / len(group))
        # Only now: reading values waits for a GPU.
        values = _finite_values(terms, step, batch.ids)
        log.add(values, batch.audio_seconds)
    norm = float(nn.utils.clip_grad_norm_(run.model.parameters(), run.settings.gradient_clip))
    if not math.isfinite(norm):
        raise TrainingDivergedError(step, "the gradient", _ids(group))
    optimizer.step()
    return norm


def _ids(group: Iterable[Batch]) -> list[str]:
    return [identifier for batch in group for identifier in batch.ids]


def _finite_values(
    terms: Mapping[str, Tensor], step: int, ids: tuple[str, ...]
) -> dict[str, float]:
    stacked = torch.stack([term.detach().float() for term in terms.values()]).tolist()
    values = dict(zip(terms, stacked, strict=True))
    for name, value in values.items():
        if not math.isfinite(value):
            raise TrainingDivergedError(step, name, ids)
    return values


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 autocast where `precision` asks for it; `auto` where the device multiplies in bf16."""
    enabled = precision == "bf16" or (precision == "auto" and _multiplies_in_bf16(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def _multiplies_in_bf16(device: torch.device) -> bool:
    """Devices without the instructions (CUDA before Ampere, most CPUs) emulate them, slowly."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return True
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
