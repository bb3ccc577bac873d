"""Selections whose ties are broken in one documented way."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["best_columns", "top_tokens"]


def top_tokens(
    scores: Float[Tensor, "N V"], count: int
) -> tuple[Float[Tensor, "N C"], Int[Tensor, "N C"]]:
    """The `count` best columns of every row, in ascending order of column.

    Of columns that tie for the last places, the lower ones are taken.
    """
    if count >= scores.shape[1]:
        columns = torch.arange(scores.shape[1], device=scores.device)
        return scores, columns.expand(scores.shape)
    values, columns = scores.topk(count + 1, dim=1)
    last = values[:, count - 1]
    tied = (last == values[:, count]) & (last > -math.inf)
    columns = columns[:, :count].sort(dim=1).values
    if bool(tied.any()):
        columns[tied] = _lowest_of_tied(scores[tied], last[tied, None], count)
    return scores.gather(1, columns), columns


def _lowest_of_tied(
    scores: Float[Tensor, "N V"], last: Float[Tensor, "N 1"], count: int
) -> Int[Tensor, "N C"]:
    """All columns above the last value taken, and the first of those that equal it."""
    above, equal = scores > last, scores == last
    missing = count - above.sum(1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(1) <= missing))
    return chosen.nonzero()[:, 1].view(-1, count)


def best_columns(scores: Float[Tensor, "N C"], count: int) -> Int[Tensor, "N K"]:
    """The `count` best columns of every row, best first; of equal ones the lower first."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :count]
