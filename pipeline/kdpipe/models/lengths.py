"""Lengths after subsampling, and which frames of a padded batch are real."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

__all__ = ["SUBSAMPLING", "Padding", "find_padding", "subsampled_lengths", "valid_positions"]

SUBSAMPLING = 4

Length = TypeVar("Length", int, Tensor)


def subsampled_lengths(lengths: Length) -> Length:
    """Encoder frames T' = ((T-1)//2 - 1)//2 of T feature frames; 0 for T < 7.

    Two unpadded 3x3 convolutions of stride 2: encoder frame t reads feature frames
    4t .. 4t+6. Takes an int or an integer tensor of any shape.
    """
    result = ((lengths - 1) // 2 - 1) // 2
    if isinstance(result, Tensor):
        return result.clamp(min=0)
    return max(result, 0)


class Padding(NamedTuple):
    """Where a padded batch is real; made only for batches that have padding.

    `valid` is true at real frames, `keys` is the mask that attention takes, with at least
    one frame open in every row (an utterance of length 0 would otherwise give NaN), `rows`
    the real frames' indices into the flattened (B T) batch.
    """

    valid: Bool[Tensor, "B T"]
    keys: Bool[Tensor, "B 1 1 T"]
    rows: Int[Tensor, "M"]


def valid_positions(lengths: Int[Tensor, "*B"], size: int) -> Bool[Tensor, "*B T"]:
    """True at the first `lengths` of `size` positions."""
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(-1)


def find_padding(lengths: Int[Tensor, "B"], size: int) -> Padding | None:
    """The padding of a batch of `size` frames, or None when every row is full."""
    if bool((lengths >= size).all()):
        return None
    valid = valid_positions(lengths, size)
    keys = valid_positions(lengths.clamp(min=1), size)[:, None, None, :]
    return Padding(valid, keys, valid.flatten().nonzero().squeeze(1))
