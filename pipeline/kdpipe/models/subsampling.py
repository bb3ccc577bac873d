"""4x subsampling by two strided convolutions, over channels-last maps.

Parameter names are ESPnet's `Conv2dSubsampling`. Plain PyTorch would spend half of a small
model's training step here on a CPU.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kdpipe.models.derived import DerivedWeights
from kdpipe.models.lengths import SUBSAMPLING, subsampled_lengths
from kdpipe.models.linear import linear

__all__ = ["Conv2dSubsampling"]

# Output frames (of all utterances) that are subsampled at once in inference: their maps are a
# hundred times the size of the features.
FRAMES_AT_ONCE = 2048


class Conv2dSubsampling(nn.Module):
    """Two unpadded 3x3 convolutions of stride 2 and a linear layer: 4x fewer frames."""

    def __init__(self, feature_dim: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, dim, 3, 2), nn.ReLU(), nn.Conv2d(dim, dim, 3, 2), nn.ReLU()
        )
        bands = ((feature_dim - 1) // 2 - 1) // 2
        self.out = nn.Sequential(nn.Linear(dim * bands, dim))
        self._derived = DerivedWeights()

    def forward(self, features: Float[Tensor, "B T F"]) -> Float[Tensor, "B T2 D"]:
        """Long inputs go in pieces in inference, for the sake of memory; T is 7 or more."""
        frames, size = subsampled_lengths(features.shape[1]), features.shape[0]
        step = max(FRAMES_AT_ONCE // max(size, 1), 1)
        if torch.is_grad_enabled() or frames <= step:
            return self._subsample(features)
        starts = range(0, frames, step)
        ends = [min(start + step, frames) for start in starts]
        pieces = [
            self._subsample(features[:, SUBSAMPLING * start : SUBSAMPLING * end + 3])
            for start, end in zip(starts, ends, strict=True)
        ]
        return torch.cat(pieces, 1)

    def _subsample(self, features: Float[Tensor, "B T F"]) -> Float[Tensor, "B T2 D"]:
        first, second, last = self._parts()
        sources = [first.weight, second.weight, last.weight]
        one, two, three = self._derived.get("layouts", sources, self._layouts)
        maps = _first_convolution(features, one, cast(Tensor, first.bias))
        maps = F.relu_(
            _second_convolution(maps.permute(0, 3, 1, 2), two, cast(Tensor, second.bias))
        )
        return linear(maps.permute(0, 2, 3, 1).flatten(2), three, last.bias)

    def _parts(self) -> tuple[nn.Conv2d, nn.Conv2d, nn.Linear]:
        parts = (self.conv[0], self.conv[2], self.out[0])
        return cast(tuple[nn.Conv2d, nn.Conv2d, nn.Linear], parts)

    def _layouts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights for channels-last maps: (9, D), (D, D, 3, 3), (D, bands * D)."""
        first, second, last = (part.weight for part in self._parts())
        dim = last.shape[0]
        return (
            first.view(dim, 9).t().contiguous(),
            second.contiguous(memory_format=torch.channels_last),
            last.view(dim, dim, -1).transpose(1, 2).reshape(dim, -1),
        )


def _first_convolution(
    features: Float[Tensor, "B T F"], weight: Float[Tensor, "9 D"], bias: Float[Tensor, "D"]
) -> Float[Tensor, "B T2 F2 D"]:
    """The 3x3 convolution of one channel and its ReLU, as a product with its patches.

    With so few inputs an output the product, and its weight gradient above all, takes a
    third of the time of a convolution (CPU).
    """
    patches = features.unfold(1, 3, 2).unfold(2, 3, 2)
    flat = F.relu_(torch.addmm(bias, patches.reshape(-1, 9), weight))
    return flat.view(*patches.shape[:3], -1)


def _second_convolution(
    maps: Float[Tensor, "B D T F"], weight: Float[Tensor, "D D 3 3"], bias: Float[Tensor, "D"]
) -> Float[Tensor, "B D T2 F2"]:
    """The 3x3 convolution of stride 2, with a backward pass of its own in float32 on a CPU."""
    ordinary = maps.device.type != "cpu" or torch.is_autocast_enabled("cpu")
    if ordinary or not torch.is_grad_enabled():
        return F.conv2d(maps, weight, bias, 2)
    output: Tensor = _SecondConvolution.apply(maps, weight, bias)  # type: ignore[no-untyped-call]
    return output


class _SecondConvolution(torch.autograd.Function):
    """Gradient of the maps channels-last, that of the weights channels-first.

    Each is twice as fast as in the other layout; PyTorch would take one layout for both.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(maps, weight)
        return F.conv2d(maps, weight, bias, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        maps, weight = ctx.saved_tensors
        wanted_maps, *wanted_rest = ctx.needs_input_grad
        to_maps = to_weight = to_bias = None
        if wanted_maps:
            to_maps, _, _ = _gradients(gradient, maps, weight, [True, False, False])
        if any(wanted_rest):
            channels_first = gradient.contiguous(), maps.contiguous(), weight.contiguous()
            _, to_weight, to_bias = _gradients(*channels_first, [False, *wanted_rest])
        return to_maps, to_weight, to_bias


def _gradients(
    gradient: Tensor, maps: Tensor, weight: Tensor, wanted: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    bias_sizes, stride, none, dilation = [weight.shape[0]], [2, 2], [0, 0], [1, 1]
    found: tuple[Tensor | None, Tensor | None, Tensor | None] = torch.ops.aten.convolution_backward(
        gradient, maps, weight, bias_sizes, stride, none, dilation, False, none, 1, wanted
    )
    return found
