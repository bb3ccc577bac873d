"""What a decoder keeps between calls: the encoder's keys and values, and its own.

Cross-attention keys and values are projected once an utterance and shared by all its
hypotheses. Self-attention keys and values are only ever appended: a hypothesis is a set of
slots (its ancestors), so that reordering a beam gathers a small mask and moves no keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Memory", "SelfAttentionCache", "empty_cache", "reorder"]


@dataclass(frozen=True, slots=True)
class Memory:
    """Cross-attention keys and values of every decoder layer, once an utterance.

    `keys[i]`, `values[i]`: layer i, each (B, H, T', d). `mask` is true at real frames,
    (B, 1, 1, T'), or None when no utterance is padded.
    """

    keys: tuple[Float[Tensor, "B H T d"], ...]
    values: tuple[Float[Tensor, "B H T d"], ...]
    mask: Bool[Tensor, "B 1 1 T"] | None

    @property
    def size(self) -> int:
        """Number of utterances B."""
        return self.keys[0].shape[0]

    def select(self, utterances: Int[Tensor, "b"]) -> Memory:
        """The memory of some utterances, in the order given; copies them."""
        return Memory(
            tuple(keys.index_select(0, utterances) for keys in self.keys),
            tuple(values.index_select(0, utterances) for values in self.values),
            None if self.mask is None else self.mask.index_select(0, utterances),
        )


@dataclass(frozen=True, slots=True)
class SelfAttentionCache:
    """Keys and values of all tokens fed so far, append-only, for B utterances of K hypotheses.

    `keys[i]`, `values[i]`: layer i, (B, H, capacity, d), of which the first `slots` are
    filled; every step fills one slot a hypothesis. `ancestors[b, k, s]`: slot s holds a
    token of hypothesis k. `length` is the number of tokens fed to every hypothesis.
    A cache is used up by the `step` it is given to: the buffers are extended in place.
    """

    keys: tuple[Float[Tensor, "B H capacity d"], ...]
    values: tuple[Float[Tensor, "B H capacity d"], ...]
    ancestors: Bool[Tensor, "B K S"]
    length: int

    @property
    def slots(self) -> int:
        return self.ancestors.shape[2]

    def select(self, utterances: Int[Tensor, "b"]) -> SelfAttentionCache:
        """The cache of some utterances, in the order given; copies the filled slots."""
        return SelfAttentionCache(
            tuple(_filled(keys, self.slots).index_select(0, utterances) for keys in self.keys),
            tuple(
                _filled(values, self.slots).index_select(0, utterances) for values in self.values
            ),
            self.ancestors.index_select(0, utterances),
            self.length,
        )


def _filled(buffer: Float[Tensor, "B H capacity d"], slots: int) -> Float[Tensor, "B H S d"]:
    return buffer[:, :, :slots]


def empty_cache(
    memory: Memory, hypotheses: int, heads: int, head_dim: int, layers: int
) -> SelfAttentionCache:
    """A cache for `hypotheses` a utterance that have been fed nothing yet."""
    like = memory.keys[0]
    buffers = tuple(like.new_empty(memory.size, heads, 0, head_dim) for _ in range(layers))
    ancestors = torch.zeros(memory.size, hypotheses, 0, dtype=torch.bool, device=like.device)
    return SelfAttentionCache(buffers, buffers, ancestors, 0)


def reorder(cache: SelfAttentionCache, parents: Int[Tensor, "B K2"]) -> SelfAttentionCache:
    """Let hypothesis k of utterance b continue hypothesis `parents[b, k]` (0 .. K-1).

    K may change, and a parent may have any number of children. Moves no keys or values.
    """
    index = parents.unsqueeze(2).expand(-1, -1, cache.slots)
    return SelfAttentionCache(
        cache.keys, cache.values, cache.ancestors.gather(1, index), cache.length
    )


def open_slots(ancestors: Bool[Tensor, "B K S"]) -> Bool[Tensor, "B K S2"]:
    """One further slot a hypothesis, seen by itself alone."""
    own = torch.eye(ancestors.shape[1], dtype=torch.bool, device=ancestors.device)
    return torch.cat([ancestors, own.expand(ancestors.shape[0], -1, -1)], dim=2)


def append(
    buffer: Float[Tensor, "B H capacity d"], new: Float[Tensor, "B H K d"], slots: int
) -> Float[Tensor, "B H capacity2 d"]:
    """Write `new` behind the first `slots` slots, doubling the buffer when it is full."""
    needed = slots + new.shape[2]
    if needed > buffer.shape[2]:
        buffer = _grown(buffer, slots, max(needed, 2 * buffer.shape[2]))
    buffer[:, :, slots:needed] = new
    return buffer


def _grown(buffer: Tensor, slots: int, capacity: int) -> Tensor:
    shape: Sequence[int] = (*buffer.shape[:2], capacity, buffer.shape[3])
    larger = buffer.new_empty(shape)
    larger[:, :, :slots] = _filled(buffer, slots)
    return larger
