"""Transformer decoders: causal (autoregressive) and bidirectional (Mask-CTC).

Both read an encoder's frames through cross-attention whose keys and values are projected
once an utterance (`project_memory`) and shared by all its hypotheses: queries of K
hypotheses meet them as (B, H, K, T'), so nothing is copied for a beam.

Search with the causal decoder, K hypotheses for each of B utterances:

    memory = decoder.project_memory(hidden, lengths)
    cache = decoder.start(memory, hypotheses=K)
    log_probs, cache = decoder.step(tokens, cache, memory)     # tokens (B, K), first sos
    cache = reorder(cache, parents)                            # parents (B, K') in 0 .. K-1
    memory, cache = memory.select(rows), cache.select(rows)    # drop finished utterances

With the bidirectional one: `forward_with_memory(tokens, lengths, memory, wanted)`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kdpipe.models.attention import MultiHeadedAttention
from kdpipe.models.config import ModelConfig
from kdpipe.models.derived import DerivedWeights, packed_linear
from kdpipe.models.dropout import add_dropped, dropout
from kdpipe.models.layers import PositionwiseFeedForward, layer_norm
from kdpipe.models.lengths import find_padding
from kdpipe.models.memory import Memory, SelfAttentionCache, append, empty_cache, open_slots
from kdpipe.models.positions import absolute_positions

__all__ = ["CausalDecoder", "DecoderLayer", "MaskedDecoder"]


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward, each behind a norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        heads = config.decoder_heads or config.heads
        inner = config.decoder_inner or config.inner
        shape = (heads, config.dim, config.attention_dropout)
        self.self_attn = MultiHeadedAttention(*shape, few_rows=True)
        self.src_attn = MultiHeadedAttention(*shape, few_rows=True)
        self.feed_forward = PositionwiseFeedForward(
            config.dim, inner, config.dropout, "relu", few_rows=True
        )
        self.norm1 = layer_norm(config.dim)
        self.norm2 = layer_norm(config.dim)
        self.norm3 = layer_norm(config.dim)
        self.dropout_rate = config.dropout

    def forward(
        self,
        inputs: Float[Tensor, "R L D"],
        mask: Bool[Tensor, "*m"] | None,
        causal: bool,
        memory: Memory,
        layer: int,
    ) -> Float[Tensor, "R L D"]:
        """Rows of tokens, equally many for each utterance of the memory, one utterance's first."""
        x = self.add(inputs, self.self_attn(self.norm1(inputs), mask, causal))
        together = x.view(memory.size, -1, x.shape[2])
        return self.read_memory(together, memory, layer).view_as(x)

    def read_memory(
        self, inputs: Float[Tensor, "B Q D"], memory: Memory, layer: int
    ) -> Float[Tensor, "B Q D"]:
        """Cross-attention and feed-forward; Q queries an utterance, of whatever hypotheses."""
        queries = self.src_attn.project(self.norm2(inputs), "q")[0]
        keys, values = memory.keys[layer], memory.values[layer]
        x = self.add(inputs, self.src_attn.attend(queries, keys, values, memory.mask))
        return self.add(x, self.feed_forward(self.norm3(x)))

    def add(
        self, inputs: Float[Tensor, "B L D"], branch: Float[Tensor, "B L D"]
    ) -> Float[Tensor, "B L D"]:
        return add_dropped(inputs, branch, self.dropout_rate, self.training)


class _Decoder(nn.Module):
    """What both decoders are made of; `tokens_classes` ids in, as many classes out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Embedding(config.output_classes, config.dim))
        self.decoders = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.after_norm = layer_norm(config.dim)
        self.output_layer = nn.Linear(config.dim, config.output_classes)
        self._derived = DerivedWeights()
        self.dropout_rate = config.positional_dropout
        self.dim = config.dim

    def project_memory(self, hidden: Float[Tensor, "B T D"], lengths: Int[Tensor, "B"]) -> Memory:
        """Cross-attention keys and values of every layer, once an utterance.

        An utterance without frames is given one frame of zeros, so that what attends to it
        stays finite.
        """
        if hidden.shape[1] == 0:
            hidden = hidden.new_zeros(hidden.shape[0], 1, hidden.shape[2])
        pairs = [layer.src_attn.project(hidden, "kv") for layer in self._layers()]
        padding = find_padding(lengths.clamp(min=1), hidden.shape[1])
        return Memory(
            tuple(keys.contiguous() for keys, _ in pairs),
            tuple(values.contiguous() for _, values in pairs),
            None if padding is None else padding.keys,
        )

    def _layers(self) -> list[DecoderLayer]:
        return [layer for layer in self.decoders if isinstance(layer, DecoderLayer)]

    def _embed(self, tokens: Int[Tensor, "*B L"], start: int) -> Float[Tensor, "*B L D"]:
        x: Tensor = self.embed(tokens.clamp(min=0)) * math.sqrt(self.dim)
        x = x + absolute_positions(start, x.shape[-2], x)
        return dropout(x, self.dropout_rate, self.training)

    def _classify(self, hidden: Float[Tensor, "*B D"]) -> Float[Tensor, "*B C"]:
        return packed_linear(self._derived, self.output_layer, self.after_norm(hidden))


class CausalDecoder(_Decoder):
    """p(y_l | y_<l, H): the autoregressive decoder, V classes."""

    def forward(
        self, tokens: Int[Tensor, "B L"], lengths: Int[Tensor, "B"], memory: Memory
    ) -> Float[Tensor, "B L V"]:
        """Teacher-forced logits; `tokens` are sos + y, padded behind with any id.

        Position l sees positions up to l, so what stands behind an utterance's end (by
        `lengths`) reaches none of its outputs.
        """
        x = self._embed(tokens, 0)
        for index, layer in enumerate(self._layers()):
            x = layer(x, None, True, memory, index)
        return self._classify(x)

    def start(self, memory: Memory, hypotheses: int) -> SelfAttentionCache:
        """A cache for `hypotheses` (K) hypotheses for each utterance of `memory`."""
        first = self._layers()[0].self_attn
        return empty_cache(memory, hypotheses, first.heads, first.head_dim, len(self.decoders))

    def step(
        self, tokens: Int[Tensor, "B K"], cache: SelfAttentionCache, memory: Memory
    ) -> tuple[Float[Tensor, "B K V"], SelfAttentionCache]:
        """Feed one token to every hypothesis: log-probs (nats, float32) of the next one.

        Equal to the last position of the teacher-forced form. `cache` is used up.
        """
        x = self._embed(tokens.unsqueeze(2), cache.length).squeeze(2)
        ancestors = open_slots(cache.ancestors)
        mask = ancestors.unsqueeze(1)
        keys, values = list(cache.keys), list(cache.values)
        for index, layer in enumerate(self._layers()):
            attention, normed = layer.self_attn, layer.norm1(x)
            queries, new_keys, new_values = attention.project(normed, "qkv").unbind(0)
            keys[index] = append(keys[index], new_keys, cache.slots)
            values[index] = append(values[index], new_values, cache.slots)
            seen = slice(0, ancestors.shape[2])
            x = x + attention.attend(
                queries,
                keys[index][:, :, seen],
                values[index][:, :, seen],
                mask,
            )
            x = layer.read_memory(x, memory, index)
        log_probs = self._classify(x).float().log_softmax(2)
        extended = SelfAttentionCache(tuple(keys), tuple(values), ancestors, cache.length + 1)
        return log_probs, extended


class MaskedDecoder(_Decoder):
    """p(y_mask | y_obs, H): the conditional masked-language-model decoder, V + 1 classes."""

    def forward(
        self, tokens: Int[Tensor, "R L"], lengths: Int[Tensor, "R"], memory: Memory
    ) -> Float[Tensor, "R L C"]:
        """Logits at every position; tokens beyond a row's `lengths` are not read.

        R is a multiple of the memory's B: rows 0 .. R/B - 1 are of the first utterance, and so on.
        They share its keys and values.
        """
        padding = find_padding(lengths, tokens.shape[1])
        mask = None if padding is None else padding.keys
        x = self._embed(tokens, 0)
        for index, layer in enumerate(self._layers()):
            x = layer(x, mask, False, memory, index)
        return self._classify(x)

    def forward_with_memory(
        self,
        tokens: Int[Tensor, "B K L"],
        lengths: Int[Tensor, "B"],
        memory: Memory,
        wanted: Bool[Tensor, "B K L"],
    ) -> Float[Tensor, "M C"]:
        """Log-probs (nats, float32) at the wanted positions of K hypotheses an utterance.

        Row m belongs to the m-th true element of `wanted` (order of `wanted.nonzero()`).
        All hypotheses of an utterance have its length. Positions that are not wanted cost
        nothing in the last layer but their keys and values.
        """
        batch, beams, size = tokens.shape
        padding = find_padding(lengths, size)
        mask = None if padding is None else padding.keys.repeat_interleave(beams, 0)
        x = self._embed(tokens.flatten(0, 1), 0)
        layers = self._layers()
        for index, layer in enumerate(layers[:-1]):
            x = x + layer.self_attn(layer.norm1(x), mask)
            x = layer.read_memory(x.view(batch, -1, self.dim), memory, index)
            x = x.view(batch * beams, size, self.dim)
        hidden = self._last_layer(x, mask, memory, wanted)
        return self._classify(hidden).float().log_softmax(1)

    def _last_layer(
        self,
        inputs: Float[Tensor, "N L D"],
        mask: Bool[Tensor, "N 1 1 L"] | None,
        memory: Memory,
        wanted: Bool[Tensor, "B K L"],
    ) -> Float[Tensor, "M D"]:
        """The last layer at wanted positions, packed to the front of each hypothesis."""
        layer, flat = self._layers()[-1], wanted.flatten(0, 1)
        count = flat.sum(1)
        width = int(count.max()) if count.numel() else 0
        if width == 0:
            return inputs.new_zeros(0, self.dim)
        order = flat.int().argsort(dim=1, descending=True, stable=True)[:, :width]
        normed = layer.norm1(inputs)
        index = order.unsqueeze(2).expand(-1, -1, self.dim)
        keys, values = layer.self_attn.project(normed, "kv").unbind(0)
        queries = layer.self_attn.project(normed.gather(1, index), "q")[0]
        x = inputs.gather(1, index) + layer.self_attn.attend(queries, keys, values, mask)
        x = layer.read_memory(x.view(wanted.shape[0], -1, self.dim), memory, len(self.decoders) - 1)
        real = torch.arange(width, device=count.device) < count.unsqueeze(1)
        return x.view(-1, width, self.dim)[real]
