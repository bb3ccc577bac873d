"""CTC log-probability of whole label sequences."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["ctc_sequence_scores"]


def ctc_sequence_scores(
    log_probs: Float[Tensor, "B T V"],
    lengths: Int[Tensor, "B"],
    utterances: Sequence[int],
    sequences: Sequence[Sequence[int]],
    blank: int = 0,
) -> list[float]:
    """log P(sequence | its utterance) in nats; -inf with too few frames or a blank inside.

    Sequence n belongs to row `utterances[n]` of the padded batch of CTC log-posteriors.
    """
    if not sequences:
        return []
    device = log_probs.device
    rows = torch.tensor(utterances, device=device)
    sizes = torch.tensor([len(sequence) for sequence in sequences], device=device)
    width = max(1, int(sizes.max()))
    tokens = torch.tensor(
        [[*sequence, *[blank] * (width - len(sequence))] for sequence in sequences], device=device
    )
    # Each sequence's own few classes instead of the whole vocabulary: the blank, then the
    # token at each position, named by where it occurs first so that repeats stay equal.
    labels = (tokens[:, :, None] == tokens[:, None, :]).int().argmax(2) + 1
    classes = torch.cat((tokens.new_full((len(tokens), 1), blank), tokens), dim=1)
    emitted = _gather_classes(log_probs, rows, classes)
    losses = F.ctc_loss(
        emitted.transpose(0, 1), labels, lengths[rows], sizes, blank=0, reduction="none"
    )
    positions = torch.arange(width, device=device)
    spelled = ((tokens != blank) | (positions >= sizes[:, None])).all(1)
    scores: list[float] = (-losses).masked_fill(~spelled, -math.inf).tolist()
    return scores


def _gather_classes(
    log_probs: Float[Tensor, "B T V"], rows: Int[Tensor, "N"], classes: Int[Tensor, "N C"]
) -> Float[Tensor, "N T C"]:
    frames = torch.arange(log_probs.shape[1], device=log_probs.device)
    return log_probs[rows[:, None, None], frames[None, :, None], classes[:, None, :]].double()
