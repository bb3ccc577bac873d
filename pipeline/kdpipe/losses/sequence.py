"""Sequence-level distillation on the teacher's N-best list (Eq. 8, 9 and 12)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kdpipe.losses.ctc import ctc_negative_log_likelihood, required_frames
from kdpipe.losses.reduction import (
    UtteranceLoss,
    at_least_float32,
    length_mask,
    sum_by_utterance,
)

__all__ = [
    "FlatHypotheses",
    "HypothesisSelection",
    "decoder_sequence_loss",
    "encoder_sequence_loss",
    "flatten_hypotheses",
    "nbest_posteriors",
    "usable_hypotheses",
]

BLANK = 0


class HypothesisSelection(NamedTuple):
    """Which hypotheses take part (B, N), and how many were left out for each reason."""

    usable: Bool[Tensor, "B N"]
    empty: int
    unalignable: int
    duplicate: int


class FlatHypotheses(NamedTuple):
    """The H hypotheses with a positive posterior, and the utterance (row of the batch) of each."""

    tokens: Int[Tensor, "H L"]
    lengths: Int[Tensor, "H"]
    posteriors: Float[Tensor, "H"]
    utterances: Int[Tensor, "H"]


def usable_hypotheses(
    tokens: Int[Tensor, "B N L"],
    lengths: Int[Tensor, "B N"],
    frame_lengths: Int[Tensor, "B"],
    present: Bool[Tensor, "B N"],
) -> HypothesisSelection:
    """Hypotheses that can be learned from; `present` is false on the padding of the list.

    Left out, and counted once each in this order: empty ones, ones that CTC cannot align in the
    utterance's frames (or at all, with a blank among the labels), and later copies of an earlier
    hypothesis (its mass would count twice).
    """
    empty = present & (lengths == 0)
    too_long = required_frames(tokens, lengths) > frame_lengths.unsqueeze(1)
    inside = torch.arange(tokens.shape[2], device=tokens.device) < lengths.unsqueeze(2)
    no_labels = ((tokens == BLANK) & inside).any(dim=2)
    unalignable = present & ~empty & (too_long | no_labels)
    candidates = present & ~empty & ~unalignable
    duplicate = candidates & _repeats_an_earlier(tokens, lengths, candidates)
    return HypothesisSelection(
        usable=candidates & ~duplicate,
        empty=int(empty.sum()),
        unalignable=int(unalignable.sum()),
        duplicate=int(duplicate.sum()),
    )


def _repeats_an_earlier(
    tokens: Int[Tensor, "B N L"], lengths: Int[Tensor, "B N"], candidates: Bool[Tensor, "B N"]
) -> Bool[Tensor, "B N"]:
    N, L = tokens.shape[1:]
    padded = tokens.masked_fill(~length_mask(lengths, L), -1)
    equal = (padded.unsqueeze(2) == padded.unsqueeze(1)).all(dim=3)
    earlier = torch.ones(N, N, dtype=torch.bool, device=tokens.device).tril(diagonal=-1)
    return (equal & earlier & candidates.unsqueeze(1)).any(dim=2)


def nbest_posteriors(
    scores: Float[Tensor, "B N"], usable: Bool[Tensor, "B N"]
) -> Float[Tensor, "B N"]:
    """P' of Eq. 9: joint log-scores normalised over the usable hypotheses, 0 for the others.

    An utterance without usable hypotheses gets zeros, so its sequence losses are 0.
    """
    masked = at_least_float32(scores).masked_fill(~usable, -torch.inf)
    return masked.softmax(dim=1).masked_fill(~usable, 0.0)


def encoder_sequence_loss(
    log_probs: Float[Tensor, "B T V"],
    frame_lengths: Int[Tensor, "B"],
    tokens: Int[Tensor, "B N L"],
    lengths: Int[Tensor, "B N"],
    posteriors: Float[Tensor, "B N"],
) -> UtteranceLoss:
    """Eq. 8 with Q the student's CTC likelihood: -sum over the N-best of P'(y) log Q(y | X).

    Its unit is the expected number of tokens under P', which leaves the weights of Eq. 8 as they
    are. Hypotheses with P' = 0 are not computed.
    """
    taken = posteriors > 0
    nll = ctc_negative_log_likelihood(
        log_probs, frame_lengths, tokens, lengths.masked_fill(~taken, 0)
    )
    weights = posteriors.to(nll.dtype)
    return UtteranceLoss((weights * nll).sum(dim=1), (weights * lengths).sum(dim=1))


def flatten_hypotheses(
    tokens: Int[Tensor, "B N L"], lengths: Int[Tensor, "B N"], posteriors: Float[Tensor, "B N"]
) -> FlatHypotheses:
    """The hypotheses with P' > 0 as one batch for the decoder, utterance after utterance."""
    taken = posteriors > 0
    return FlatHypotheses(
        tokens=tokens[taken],
        lengths=lengths[taken],
        posteriors=posteriors[taken],
        utterances=taken.nonzero()[:, 0],
    )


def decoder_sequence_loss(
    logits: Float[Tensor, "H L C"],
    masks: Bool[Tensor, "H L"],
    hypotheses: FlatHypotheses,
    batch_size: int,
    vocab_size: int,
) -> UtteranceLoss:
    """Eq. 12: -sum over the N-best of P'(y) / |mask| log Q(y_mask | y_obs, H); units are 1.

    `logits` are the masked-LM decoder's for `apply_masks(hypotheses.tokens, masks, mask_id)`; of
    their C = `vocab_size` + 1 classes the mask class is cut off before the softmax.
    """
    classes = at_least_float32(logits[masks][:, :vocab_size])
    nll = F.cross_entropy(classes, hypotheses.tokens[masks], reduction="none")
    owners = masks.nonzero()[:, 0]
    weights = hypotheses.posteriors.to(nll.dtype) / masks.sum(dim=1).clamp(min=1)
    total = sum_by_utterance(weights[owners] * nll, hypotheses.utterances[owners], batch_size)
    return UtteranceLoss(total, torch.ones_like(total))
