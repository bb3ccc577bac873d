"""Dropping the cached keys that no living hypothesis descends from."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

from kdpipe.models import SelfAttentionCache

__all__ = ["drop_dead_slots"]

_FEW_SLOTS = 64


def drop_dead_slots(cache: SelfAttentionCache) -> SelfAttentionCache:
    """Compact a cache at least half of whose slots are dead for every hypothesis.

    Beams share nearly all of their history, so the living slots number about the tokens of
    one hypothesis; doubling before compacting keeps the copying a constant cost a token.
    """
    if cache.slots < _FEW_SLOTS:
        return cache
    alive = cache.ancestors.any(1)
    kept = int(alive.sum(1).max()) if alive.shape[0] else 0
    if 2 * kept > cache.slots:
        return cache
    order = alive.int().argsort(dim=1, descending=True, stable=True)[:, :kept]
    return SelfAttentionCache(
        tuple(_pick(keys, order) for keys in cache.keys),
        tuple(_pick(values, order) for values in cache.values),
        _pick_ancestors(cache.ancestors, order),
        cache.length,
    )


def _pick(
    buffer: Float[Tensor, "B H capacity d"], order: Int[Tensor, "B S"]
) -> Float[Tensor, "B H S d"]:
    index = order[:, None, :, None].expand(-1, buffer.shape[1], -1, buffer.shape[3])
    return buffer.gather(2, index)


def _pick_ancestors(
    ancestors: Bool[Tensor, "B K S"], order: Int[Tensor, "B S2"]
) -> Bool[Tensor, "B K S2"]:
    return ancestors.gather(2, order[:, None, :].expand(-1, ancestors.shape[1], -1))
