"""The decoder half of L_jca (Eq. 2-4, 6): attention loss, masked-LM loss, and the masking."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kdpipe.losses.reduction import (
    UtteranceLoss,
    at_least_float32,
    length_mask,
    sum_by_utterance,
)

__all__ = [
    "apply_masks",
    "attention_inputs",
    "attention_loss",
    "attention_targets",
    "draw_masks",
    "masked_lm_loss",
]


def draw_masks(
    lengths: Int[Tensor, "B"], generator: torch.Generator, longest: int | None = None
) -> Bool[Tensor, "B L"]:
    """Positions to mask in each sequence (Mask-CTC): count uniform in 1..length, then positions
    uniform without replacement. An empty sequence gets none.

    `longest` is the width of the result (default: the largest length). The numbers are drawn on
    the generator's device, so a CPU generator gives the same masks on every device.
    """
    width = int(lengths.max()) if longest is None else longest
    B = lengths.shape[0]
    sizes = lengths.to(generator.device)
    draws = torch.rand(B, width + 1, generator=generator, device=generator.device)
    counts = ((draws[:, -1] * sizes).long() + 1).clamp(max=sizes)
    keys = draws[:, :-1].masked_fill(~length_mask(sizes, width), 2.0)
    ranks = keys.argsort(dim=1).argsort(dim=1)
    return (ranks < counts.unsqueeze(1)).to(lengths.device)


def apply_masks(
    tokens: Int[Tensor, "B L"], masks: Bool[Tensor, "B L"], mask_id: int
) -> Int[Tensor, "B L"]:
    """The masked-LM decoder's input: `mask_id` where `masks` is true, the token elsewhere."""
    return tokens.masked_fill(masks, mask_id)


def masked_lm_loss(
    logits: Float[Tensor, "B L C"],
    tokens: Int[Tensor, "B L"],
    masks: Bool[Tensor, "B L"],
    smoothing: float = 0.0,
) -> UtteranceLoss:
    """L_mlm (Eq. 4) over the masked positions, per mask.

    All C = V + 1 classes stay in the softmax, as in ESPnet: the mask class is never a target, so
    it is learned away, and a search may keep or drop it. (Distillation drops it, see
    `class_log_probs`.)
    """
    per_token = smoothed_cross_entropy(logits[masks], tokens[masks], smoothing)
    utterances = masks.nonzero()[:, 0]
    total = sum_by_utterance(per_token, utterances, masks.shape[0])
    return UtteranceLoss(total, masks.sum(dim=1).to(total.dtype))


def attention_inputs(
    tokens: Int[Tensor, "B L"], lengths: Int[Tensor, "B"], sos_eos_id: int
) -> Int[Tensor, "B L1"]:
    """Teacher-forced input of the autoregressive decoder: sos, then y; padding becomes eos."""
    inside = length_mask(lengths, tokens.shape[1])
    return F.pad(tokens.masked_fill(~inside, sos_eos_id), (1, 0), value=sos_eos_id)


def attention_targets(
    tokens: Int[Tensor, "B L"], lengths: Int[Tensor, "B"], sos_eos_id: int
) -> Int[Tensor, "B L1"]:
    """What that decoder must say: y, then eos; padding is eos too and never counted."""
    inside = length_mask(lengths, tokens.shape[1])
    return F.pad(tokens.masked_fill(~inside, sos_eos_id), (0, 1), value=sos_eos_id)


def attention_loss(
    logits: Float[Tensor, "B L1 V"],
    tokens: Int[Tensor, "B L"],
    lengths: Int[Tensor, "B"],
    sos_eos_id: int,
    smoothing: float = 0.0,
) -> UtteranceLoss:
    """L_ar (Eq. 2) over y and the end of sentence, per token (length + 1 of them).

    `logits` are the decoder's for the input of `attention_inputs`; L1 = L + 1.
    """
    targets = attention_targets(tokens, lengths, sos_eos_id)
    per_token = smoothed_cross_entropy(logits.flatten(0, 1), targets.flatten(), smoothing)
    inside = length_mask(lengths + 1, targets.shape[1])
    total = per_token.view_as(targets).masked_fill(~inside, 0.0).sum(dim=1)
    return UtteranceLoss(total, (lengths + 1).to(total.dtype))


def smoothed_cross_entropy(
    logits: Float[Tensor, "N C"], targets: Int[Tensor, "N"], smoothing: float
) -> Float[Tensor, "N"]:
    """KL divergence from the smoothed target, nats, float32: ESPnet's `LabelSmoothingLoss`.

    The target holds 1 - smoothing, every other class smoothing / (C - 1). The target's entropy is
    taken off, so the smallest possible loss is 0 whatever the smoothing.
    """
    C = logits.shape[1]
    # torch spreads its share over all C classes, the target included.
    cross_entropy = F.cross_entropy(
        at_least_float32(logits),
        targets,
        label_smoothing=smoothing * C / (C - 1),
        reduction="none",
    )
    return cross_entropy - _smoothed_entropy(smoothing, C)


def _smoothed_entropy(smoothing: float, classes: int) -> float:
    shares = torch.tensor([1.0 - smoothing, smoothing / (classes - 1)], dtype=torch.float64)
    counts = torch.tensor([1.0, classes - 1.0], dtype=torch.float64)
    return float((counts * torch.special.entr(shares)).sum())
