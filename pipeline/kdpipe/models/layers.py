"""The building blocks of encoder and decoder: feed-forward, convolution, subsampling.

Parameter names are ESPnet's, so that its checkpoints load name by name.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kdpipe.models.lengths import Padding

__all__ = ["Conv2dSubsampling", "ConvolutionModule", "FrameBatchNorm", "PositionwiseFeedForward"]

LAYER_NORM_EPSILON = 1e-12


def layer_norm(dim: int) -> nn.LayerNorm:
    """LayerNorm with ESPnet's epsilon."""
    return nn.LayerNorm(dim, eps=LAYER_NORM_EPSILON)


class PositionwiseFeedForward(nn.Module):
    """w_2(dropout(activation(w_1 x))); activation is "swish" or "relu"."""

    def __init__(self, dim: int, inner: int, dropout: float, activation: str) -> None:
        super().__init__()
        self.w_1 = nn.Linear(dim, inner)
        self.w_2 = nn.Linear(inner, dim)
        self.activation = F.silu if activation == "swish" else F.relu
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        output: Tensor = self.w_2(self.dropout(self.activation(self.w_1(inputs))))
        return output


class FrameBatchNorm(nn.BatchNorm1d):
    """BatchNorm over real frames only; parameters and running statistics as BatchNorm1d."""

    def forward(  # type: ignore[override]
        self, inputs: Float[Tensor, "B T D"], padding: Padding | None
    ) -> Float[Tensor, "B T D"]:
        flat = inputs.flatten(0, 1)
        if padding is None or not self.training:
            return super().forward(flat).view_as(inputs)
        real = super().forward(flat.index_select(0, padding.rows))
        return torch.zeros_like(flat).index_copy(0, padding.rows, real).view_as(inputs)


class ConvolutionModule(nn.Module):
    """Pointwise, GLU, depthwise, BatchNorm, activation, pointwise (arXiv:2005.08100, 2.2)."""

    def __init__(self, dim: int, kernel: int, activation: str) -> None:
        super().__init__()
        self.pointwise_conv1 = nn.Conv1d(dim, 2 * dim, 1)
        self.depthwise_conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = FrameBatchNorm(dim)
        self.pointwise_conv2 = nn.Conv1d(dim, dim, 1)
        self.activation = F.silu if activation == "swish" else F.relu

    def forward(
        self, inputs: Float[Tensor, "B T D"], padding: Padding | None
    ) -> Float[Tensor, "B T D"]:
        """Padded frames are read as the zeros that lie beyond an utterance's end."""
        expanded = F.linear(inputs, self.pointwise_conv1.weight[:, :, 0], self.pointwise_conv1.bias)
        gated = F.glu(expanded, dim=2)
        if padding is not None:
            gated = gated.masked_fill(~padding.valid.unsqueeze(2), 0.0)
        mixed = self.depthwise_conv(gated.transpose(1, 2)).transpose(1, 2)
        active = self.activation(self.norm(mixed, padding))
        return F.linear(active, self.pointwise_conv2.weight[:, :, 0], self.pointwise_conv2.bias)


class Conv2dSubsampling(nn.Module):
    """Two unpadded 3x3 convolutions of stride 2 and a linear layer: 4x fewer frames."""

    def __init__(self, feature_dim: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, dim, 3, 2), nn.ReLU(), nn.Conv2d(dim, dim, 3, 2), nn.ReLU()
        )
        bands = ((feature_dim - 1) // 2 - 1) // 2
        self.out = nn.Sequential(nn.Linear(dim * bands, dim))

    def forward(self, features: Float[Tensor, "B T F"]) -> Float[Tensor, "B T2 D"]:
        maps = self.conv(features.unsqueeze(1))
        output: Tensor = self.out(maps.transpose(1, 2).flatten(2))
        return output
