"""Matrix products through oneDNN where PyTorch would take MKL: twice as fast on AMD CPUs.

`torch.nn.functional.linear` in float32 goes to MKL, whose AVX-512 kernels are kept for
Intel's own processors. The operator that PyTorch's compiler uses for frozen weights goes to
oneDNN, which has no such preference. It is tried once; where it is missing or wrong,
everything falls back to `F.linear`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["linear", "pack", "pays_to_pack"]

# Up to so many rows a product is bound by reading its weights.
FEW_ROWS = 256
# Below so many multiplications the operator's own overhead (10 us) outweighs its speed.
SMALL_PRODUCT = 600_000


def linear(
    inputs: Float[Tensor, "*B I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, "O"] | None
) -> Float[Tensor, "*B O"]:
    """inputs @ weight.T + bias, differentiable once; `weight` may be packed by `pack`."""
    if weight.is_mkldnn:
        return _product(inputs, weight, bias)
    if not _suits(inputs, weight.shape[0]) or not _works():
        return F.linear(inputs, weight, bias)
    if torch.is_grad_enabled() and (inputs.requires_grad or weight.requires_grad):
        output: Tensor = _Linear.apply(inputs, weight, bias)  # type: ignore[no-untyped-call]
        return output
    return _product(inputs, weight, bias)


def pays_to_pack(inputs: Float[Tensor, "*B I"], outputs: int) -> bool:
    """Whether a packed weight, if it is kept, makes a product with `outputs` columns faster.

    Few rows and no gradient.
    """
    few = inputs.numel() <= FEW_ROWS * inputs.shape[-1]
    return few and not torch.is_grad_enabled() and _suits(inputs, outputs) and _works()


def pack(weight: Float[Tensor, "O I"]) -> Tensor:
    """The same weight in the operator's own layout, which nothing but `linear` can read."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), FEW_ROWS)
    return packed


def _suits(inputs: Tensor, outputs: int) -> bool:
    return (
        inputs.device.type == "cpu"
        and inputs.dtype == torch.float32
        and inputs.numel() * outputs >= SMALL_PRODUCT
        and not torch.is_autocast_enabled("cpu")
    )


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    output: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return output


@cache
def _works() -> bool:
    """Whether the operator exists, runs, and agrees with `F.linear` on a small case."""
    if not torch.backends.mkldnn.enabled:
        return False
    with torch.no_grad():
        inputs, weight = torch.arange(15.0).view(3, 5), torch.arange(10.0).view(2, 5)
        try:
            found = [_product(inputs, form, torch.ones(2)) for form in (weight, pack(weight))]
        except (AttributeError, RuntimeError):
            return False
        expected = F.linear(inputs, weight, torch.ones(2))
        return all(torch.allclose(one, expected) for one in found)


class _Linear(torch.autograd.Function):
    """The product and both of its gradients."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _product(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        flat = gradient.reshape(-1, weight.shape[0])
        wanted_inputs, wanted_weight, wanted_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.t(), None) if wanted_inputs else None,
            _weight_gradient(inputs.reshape(-1, weight.shape[1]), flat) if wanted_weight else None,
            flat.sum(0) if wanted_bias else None,
        )


def _weight_gradient(inputs: Tensor, gradient: Tensor) -> Tensor:
    """gradient.T @ inputs, with the narrower of the two as the operator's first operand."""
    if gradient.shape[1] <= inputs.shape[1]:
        return _product(gradient.t(), inputs.t(), None)
    return _product(inputs.t(), gradient.t(), None).t()
