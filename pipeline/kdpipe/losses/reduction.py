"""Per-utterance losses and the one place where they become scalars.

Every loss of this room returns an `UtteranceLoss`: a sum in nats and the number of units it was
summed over, per utterance. `reduce_terms` turns them into one scalar a term.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = [
    "Scale",
    "UtteranceLoss",
    "at_least_float32",
    "class_log_probs",
    "join_losses",
    "length_mask",
    "reduce_terms",
    "sum_by_utterance",
]

Scale = Literal["unit", "paper"]


class UtteranceLoss(NamedTuple):
    """One term for every utterance of a batch: `total` in nats over `units` units, both (B,)."""

    total: Float[Tensor, "B"]
    units: Float[Tensor, "B"]


def reduce_terms(terms: Mapping[str, UtteranceLoss], scale: Scale) -> dict[str, Float[Tensor, ""]]:
    """Every term as one scalar, by one rule, so that the weights of Eq. 10 and 13 mean something.

    `"unit"`: mean per unit (token, frame, mask), then over the utterances, so that terms compare
    like with like. `"paper"`: the sum of each utterance, averaged over the utterances, as the
    paper's equations and ESPnet have them (Eq. 11 and 12 are means over masks in either scale).
    An utterance without units counts as zero.
    """
    return {name: _reduce(term, scale) for name, term in terms.items()}


def _reduce(term: UtteranceLoss, scale: Scale) -> Float[Tensor, ""]:
    if scale == "paper":
        return term.total.mean()
    return (term.total / term.units.clamp(min=1.0)).mean()


def join_losses(parts: Iterable[UtteranceLoss]) -> UtteranceLoss:
    """One loss over the utterances of all `parts`, one part after the other."""
    totals, units = zip(*parts, strict=True)
    return UtteranceLoss(torch.cat(totals), torch.cat(units))


def at_least_float32(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Half precision becomes float32; float32 and float64 stay as they are."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def class_log_probs(
    logits: Float[Tensor, "*rows C"], vocab_size: int
) -> Float[Tensor, "*rows {vocab_size}"]:
    """Log-softmax over the first `vocab_size` classes, in float32 also under autocast.

    The masked-LM decoder has one class more (mask, the last): it is cut off before the softmax,
    so that teacher and student distributions are over the same V classes.
    """
    return at_least_float32(logits[..., :vocab_size]).log_softmax(dim=-1)


def length_mask(lengths: Int[Tensor, "*rows"], longest: int) -> Bool[Tensor, "*rows {longest}"]:
    """True at positions below each length."""
    return torch.arange(longest, device=lengths.device) < lengths.unsqueeze(-1)


def sum_by_utterance(
    values: Float[Tensor, "N"], utterances: Int[Tensor, "N"], batch_size: int
) -> Float[Tensor, "{batch_size}"]:
    """Sum of `values` for each utterance number in [0, batch_size)."""
    return values.new_zeros(batch_size).index_add(0, utterances, values)
