"""The building blocks of encoder and decoder: feed-forward and convolution module.

Parameter names are ESPnet's, so that its checkpoints load name by name. Frames stay
(B, T, D) throughout: a channels-last layout for the convolutions, many times faster on a
CPU than transposing for them.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kdpipe.models.derived import DerivedWeights, packed_linear
from kdpipe.models.dropout import dropout
from kdpipe.models.lengths import Padding
from kdpipe.models.linear import linear

__all__ = ["ConvolutionModule", "PositionwiseFeedForward", "depthwise"]

LAYER_NORM_EPSILON = 1e-12


def layer_norm(dim: int) -> nn.LayerNorm:
    """LayerNorm with ESPnet's epsilon."""
    return nn.LayerNorm(dim, eps=LAYER_NORM_EPSILON)


class PositionwiseFeedForward(nn.Module):
    """w_2(dropout(activation(w_1 x))); activation is "swish" or "relu".

    `few_rows`: inference brings few rows a call, so weights are kept packed for them.
    """

    def __init__(
        self,
        dim: int,
        inner: int,
        dropout_rate: float,
        activation: str,
        few_rows: bool = False,
    ) -> None:
        super().__init__()
        self.w_1 = nn.Linear(dim, inner)
        self.w_2 = nn.Linear(inner, dim)
        self.activation = F.silu if activation == "swish" else F.relu
        self.dropout_rate = dropout_rate
        self.few_rows = few_rows
        self._derived = DerivedWeights()

    def forward(self, inputs: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        active = self.activation(self._linear(self.w_1, inputs))
        return self._linear(self.w_2, dropout(active, self.dropout_rate, self.training))

    def _linear(self, layer: nn.Linear, inputs: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        if self.few_rows:
            return packed_linear(self._derived, layer, inputs)
        return linear(inputs, layer.weight, layer.bias)


def depthwise(
    inputs: Float[Tensor, "B T D"], weight: Float[Tensor, "D 1 K"], bias: Float[Tensor, "D"]
) -> Float[Tensor, "B T D"]:
    """One filter of K frames a channel, zeros beyond both ends.

    As a 2-D convolution over a channels-last view: for inference with time as the width,
    for training as the height, whose backward pass is the faster one (CPU).
    """
    channels, half = weight.shape[0], weight.shape[2] // 2
    maps = inputs.transpose(1, 2)
    if torch.is_grad_enabled():
        tall = F.conv2d(
            maps.unsqueeze(3), weight.unsqueeze(3), bias, padding=(half, 0), groups=channels
        )
        return tall.squeeze(3).transpose(1, 2)
    wide = F.conv2d(
        maps.unsqueeze(2), weight.unsqueeze(2), bias, padding=(0, half), groups=channels
    )
    return wide.squeeze(2).transpose(1, 2)


def batch_norm(
    norm: nn.BatchNorm1d, inputs: Float[Tensor, "B T D"], padding: Padding | None
) -> Float[Tensor, "B T D"]:
    """BatchNorm in training, over the statistics of real frames alone."""
    flat = inputs.flatten(0, 1)
    if padding is None:
        whole: Tensor = norm(flat)
        return whole.view_as(inputs)
    real = norm(flat.index_select(0, padding.rows))
    return torch.zeros_like(flat).index_copy(0, padding.rows, real).view_as(inputs)


class ConvolutionModule(nn.Module):
    """Pointwise, GLU, depthwise, BatchNorm, activation, pointwise (arXiv:2005.08100, 2.2).

    In training, BatchNorm's statistics are those of real frames; a batch with fewer than
    two of them uses the running ones. In inference BatchNorm is folded into the depthwise
    filters.
    """

    def __init__(self, dim: int, kernel: int, activation: str) -> None:
        super().__init__()
        self.pointwise_conv1 = nn.Conv1d(dim, 2 * dim, 1)
        self.depthwise_conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = nn.BatchNorm1d(dim)
        self.pointwise_conv2 = nn.Conv1d(dim, dim, 1)
        self.activation = F.silu if activation == "swish" else F.relu
        self._derived = DerivedWeights()

    def forward(
        self, inputs: Float[Tensor, "B T D"], padding: Padding | None
    ) -> Float[Tensor, "B T D"]:
        """Padded frames are read as the zeros that lie beyond an utterance's end."""
        expanded = linear(inputs, self.pointwise_conv1.weight[:, :, 0], self.pointwise_conv1.bias)
        gated = F.glu(expanded, dim=2)
        if padding is not None:
            gated = gated.masked_fill_(~padding.valid.unsqueeze(2), 0.0)
        mixed = self.activation(self._mix(gated, padding))
        return linear(mixed, self.pointwise_conv2.weight[:, :, 0], self.pointwise_conv2.bias)

    def _mix(
        self, inputs: Float[Tensor, "B T D"], padding: Padding | None
    ) -> Float[Tensor, "B T D"]:
        """Depthwise convolution and BatchNorm."""
        frames = inputs.shape[0] * inputs.shape[1] if padding is None else padding.rows.numel()
        if self.training and frames > 1:
            mixed = depthwise(inputs, self.depthwise_conv.weight, self._bias())
            return batch_norm(self.norm, mixed, padding)
        return depthwise(inputs, *self._folded())

    def _bias(self) -> Tensor:
        return cast(Tensor, self.depthwise_conv.bias)

    def _folded(self) -> tuple[Tensor, ...]:
        """The depthwise filters and biases with BatchNorm's running statistics in them."""
        norm, weight, bias = self.norm, self.depthwise_conv.weight, self._bias()
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)

        def compute() -> tuple[Tensor, Tensor]:
            scale = norm.weight * torch.rsqrt(variance + norm.eps)
            return weight * scale[:, None, None], (bias - mean) * scale + norm.bias

        # The counter tells of updates: BatchNorm's kernel changes the others unseen.
        counter = cast(Tensor, norm.num_batches_tracked)
        sources = [weight, bias, norm.weight, norm.bias, mean, variance, counter]
        return self._derived.get("folded", sources, compute)
