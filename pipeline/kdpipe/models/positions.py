"""Sinusoidal position tables: absolute, relative, and the older relative form.

Names and values follow ESPnet's `PositionalEncoding`, `RelPositionalEncoding` and
`LegacyRelPositionalEncoding`, so that its checkpoints mean the same here.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "KEPT_REACH",
    "absolute_positions",
    "legacy_positions",
    "relative_positions",
    "sinusoids",
]

# Relative tables that reach no further are shared by all lengths in inference.
KEPT_REACH = 2048
# The older relative form counts down from the end of a table of this many rows.
LEGACY_TABLE = 5000


def sinusoids(positions: Float[Tensor, "N"], dim: int) -> Float[Tensor, "N D"]:
    """sin and cos of each position, interleaved, at dim/2 wavelengths up to 10000 * 2 pi."""
    rate = torch.exp(torch.arange(0, dim, 2) * -(math.log(10000.0) / dim)).to(positions.device)
    angles = positions.unsqueeze(1) * rate
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


@lru_cache(maxsize=16)
def _table(first: int, last: int, dim: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        step = 1 if last >= first else -1
        span = torch.arange(first, last + step, step, dtype=torch.float32, device=device)
        return sinusoids(span, dim)


def _rounded(length: int) -> int:
    """Tables grow by doubling, so that few are ever made."""
    return 1 << max(length - 1, 255).bit_length()


def absolute_positions(start: int, length: int, like: Tensor) -> Float[Tensor, "T D"]:
    """Positions start .. start + length - 1 for vectors such as `like` (..., D)."""
    table = _table(0, _rounded(start + length) - 1, like.shape[-1], like.device)
    return table[start : start + length].to(like.dtype)


def relative_positions(length: int, like: Tensor, exact: bool = True) -> Float[Tensor, "R D"]:
    """Relative positions length-1 .. -(length-1): R = 2 * length - 1 rows.

    Not `exact`: the table may reach further, so that few tables serve all lengths.
    """
    reach = _rounded(length)
    table = _table(reach - 1, 1 - reach, like.shape[-1], like.device).to(like.dtype)
    if not exact and reach <= KEPT_REACH:
        return table
    return table[reach - length : reach + length - 1]


def legacy_positions(length: int, like: Tensor) -> Float[Tensor, "T D"]:
    """Positions N-1, N-2, ... of the older form, N = 5000 (or `length` beyond that)."""
    top = max(LEGACY_TABLE, length) - 1
    return _table(top, 0, like.shape[-1], like.device)[:length].to(like.dtype)
