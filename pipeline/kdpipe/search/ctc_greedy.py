"""Greedy CTC decoding with the confidence of every token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["GreedyHypothesis", "ctc_greedy"]


@dataclass(frozen=True, slots=True)
class GreedyHypothesis:
    """The best alignment, collapsed.

    `confidences[i]` is the highest frame posterior in the run of frames that spells
    `tokens[i]` (Mask-CTC, Sec. 2.2 of the paper: compared with p_thr); `score` is the
    alignment's log-probability in nats.
    """

    tokens: tuple[int, ...]
    confidences: tuple[float, ...]
    score: float


def ctc_greedy(
    log_probs: Float[Tensor, "B T V"], lengths: Int[Tensor, "B"], blank: int = 0
) -> list[GreedyHypothesis]:
    """Most probable class of every frame, repeats merged, blanks dropped.

    Of classes that tie, the lowest id is taken. Frames beyond `lengths` are not read.
    """
    batch, frames = log_probs.shape[:2]
    if frames == 0:
        return [GreedyHypothesis((), (), 0.0) for _ in range(batch)]
    best, classes = log_probs.max(dim=2)
    real = torch.arange(frames, device=lengths.device) < lengths[:, None]
    classes = classes.masked_fill(~real, blank)
    scores = best.double().masked_fill(~real, 0.0).sum(1).tolist()
    starts = torch.ones_like(real)
    starts[:, 1:] = classes[:, 1:] != classes[:, :-1]
    run = starts.flatten().cumsum(0) - 1
    peaks = best.new_full((int(run[-1]) + 1 if batch else 0,), -torch.inf)
    peaks.scatter_reduce_(0, run, best.flatten(), "amax")
    spells = starts & (classes != blank)
    confidences = peaks[run.view(batch, frames)[spells]].double().exp().tolist()
    tokens = classes[spells].tolist()
    ends = spells.sum(1).cumsum(0).tolist()
    begins = [0, *ends[:-1]][:batch]
    return [
        GreedyHypothesis(tuple(tokens[i:j]), tuple(confidences[i:j]), score)
        for i, j, score in zip(begins, ends, scores, strict=True)
    ]
