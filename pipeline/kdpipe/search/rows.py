"""Choosing utterances of a batch: a front of it is a view, anything else a copy.

Batches are ordered so that what ends first stands last, as a rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kdpipe.models import Memory, SelfAttentionCache

__all__ = ["select_cache", "select_memory"]


def select_memory(memory: Memory, rows: Sequence[int]) -> Memory:
    """The encoder's keys and values of some utterances, in the order given."""
    if not _is_front(rows):
        return memory.select(torch.tensor(rows, device=memory.keys[0].device))
    front = slice(0, len(rows))
    return Memory(
        tuple(keys[front] for keys in memory.keys),
        tuple(values[front] for values in memory.values),
        None if memory.mask is None else memory.mask[front],
    )


def select_cache(cache: SelfAttentionCache, rows: Sequence[int]) -> SelfAttentionCache:
    """The decoder's own keys and values of some utterances, in the order given."""
    if not _is_front(rows):
        return cache.select(torch.tensor(rows, device=cache.ancestors.device))
    front = slice(0, len(rows))
    return SelfAttentionCache(
        tuple(keys[front] for keys in cache.keys),
        tuple(values[front] for values in cache.values),
        cache.ancestors[front],
        cache.length,
    )


def _is_front(rows: Sequence[int]) -> bool:
    return all(row == place for place, row in enumerate(rows))
