"""Conformer and Transformer encoders over 4x subsampled features.

Conformer: arXiv:2005.08100; structure and names as in ESPnet, pre-norm throughout.
"""

from __future__ import annotations

import math

from jaxtyping import Float, Int
from torch import Tensor, nn

from kdpipe.models.attention import (
    LegacyRelPositionMultiHeadedAttention,
    MultiHeadedAttention,
    RelPositionMultiHeadedAttention,
)
from kdpipe.models.config import ModelConfig
from kdpipe.models.dropout import add_dropped, dropout
from kdpipe.models.layers import (
    ConvolutionModule,
    PositionwiseFeedForward,
    layer_norm,
)
from kdpipe.models.lengths import Padding, find_padding, subsampled_lengths
from kdpipe.models.positions import absolute_positions, legacy_positions, relative_positions
from kdpipe.models.subsampling import Conv2dSubsampling

__all__ = ["ConformerLayer", "Encoder", "TransformerLayer"]


def _self_attention(config: ModelConfig) -> MultiHeadedAttention:
    kinds: dict[str, type[MultiHeadedAttention]] = {
        "relative": RelPositionMultiHeadedAttention,
        "relative-legacy": LegacyRelPositionMultiHeadedAttention,
        "absolute": MultiHeadedAttention,
    }
    return kinds[config.positions](config.heads, config.dim, config.attention_dropout)


def _attend(
    attention: nn.Module,
    inputs: Float[Tensor, "B T D"],
    positions: Float[Tensor, "R D"] | None,
    padding: Padding | None,
) -> Float[Tensor, "B T D"]:
    output: Tensor
    if positions is None:
        output = attention(inputs, None if padding is None else padding.keys)
    else:
        output = attention(inputs, positions, padding)
    return output


class ConformerLayer(nn.Module):
    """Half-step feed-forward, attention, convolution, half-step feed-forward, norm.

    Without `config.macaron` there is one full feed-forward, at the end; without
    `config.convolution` neither the convolution module nor the final norm.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, inner = config.dim, config.inner
        self.self_attn = _self_attention(config)
        self.norm_mha = layer_norm(dim)
        self.feed_forward = PositionwiseFeedForward(dim, inner, config.dropout, config.activation)
        self.norm_ff = layer_norm(dim)
        if config.macaron:
            self.feed_forward_macaron = PositionwiseFeedForward(
                dim, inner, config.dropout, config.activation
            )
            self.norm_ff_macaron = layer_norm(dim)
        if config.convolution:
            self.conv_module = ConvolutionModule(dim, config.kernel, config.activation)
            self.norm_conv = layer_norm(dim)
            self.norm_final = layer_norm(dim)
        self.dropout_rate = config.dropout
        self.macaron, self.convolution = config.macaron, config.convolution

    def forward(
        self,
        inputs: Float[Tensor, "B T D"],
        positions: Float[Tensor, "R D"] | None,
        padding: Padding | None,
    ) -> Float[Tensor, "B T D"]:
        x, step = inputs, 0.5 if self.macaron else 1.0
        if self.macaron:
            x = self._add(x, self.feed_forward_macaron(self.norm_ff_macaron(x)), step)
        x = self._add(x, _attend(self.self_attn, self.norm_mha(x), positions, padding))
        if self.convolution:
            x = self._add(x, self.conv_module(self.norm_conv(x), padding))
        x = self._add(x, self.feed_forward(self.norm_ff(x)), step)
        if self.convolution:
            x = self.norm_final(x)
        return x

    def _add(
        self, inputs: Float[Tensor, "B T D"], branch: Float[Tensor, "B T D"], scale: float = 1.0
    ) -> Float[Tensor, "B T D"]:
        return add_dropped(inputs, branch, self.dropout_rate, self.training, scale)


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward, each behind a norm and added to its input."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = _self_attention(config)
        self.norm1 = layer_norm(config.dim)
        self.feed_forward = PositionwiseFeedForward(
            config.dim, config.inner, config.dropout, config.activation
        )
        self.norm2 = layer_norm(config.dim)
        self.dropout_rate = config.dropout

    def forward(
        self,
        inputs: Float[Tensor, "B T D"],
        positions: Float[Tensor, "R D"] | None,
        padding: Padding | None,
    ) -> Float[Tensor, "B T D"]:
        attended = _attend(self.self_attn, self.norm1(inputs), positions, padding)
        x = add_dropped(inputs, attended, self.dropout_rate, self.training)
        return add_dropped(x, self.feed_forward(self.norm2(x)), self.dropout_rate, self.training)


class Encoder(nn.Module):
    """Subsampling, positions, layers, final norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        layer = ConformerLayer if config.encoder == "conformer" else TransformerLayer
        self.embed = Conv2dSubsampling(config.feature_dim, config.dim)
        self.encoders = nn.ModuleList(layer(config) for _ in range(config.encoder_layers))
        self.after_norm = layer_norm(config.dim)
        self.dropout_rate = config.positional_dropout
        self.positions = config.positions
        self.dim = config.dim

    def forward(
        self, features: Float[Tensor, "B T F"], lengths: Int[Tensor, "B"]
    ) -> tuple[Float[Tensor, "B T2 D"], Int[Tensor, "B"]]:
        """Hidden frames (0 beyond each utterance's end) and their number T'."""
        frames, size = subsampled_lengths(lengths), subsampled_lengths(features.shape[1])
        if size == 0:
            return features.new_zeros(features.shape[0], 0, self.dim), frames
        padding = find_padding(frames, size)
        x, positions = self._embed(features)
        for layer in self.encoders:
            x = layer(x, positions, padding)
        x = self.after_norm(x)
        if padding is not None:
            x = x.masked_fill(~padding.valid.unsqueeze(2), 0.0)
        return x, frames

    def _embed(
        self, features: Float[Tensor, "B T F"]
    ) -> tuple[Float[Tensor, "B T2 D"], Float[Tensor, "R D"] | None]:
        x = self.embed(features) * math.sqrt(self.dim)
        length = x.shape[1]
        if self.positions == "absolute":
            return self._drop(x + absolute_positions(0, length, x)), None
        if self.positions == "relative":
            table = relative_positions(length, x, exact=self.training)
        else:
            table = legacy_positions(length, x)
        return self._drop(x), self._drop(table)

    def _drop(self, inputs: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return dropout(inputs, self.dropout_rate, self.training)
