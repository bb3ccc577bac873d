"""Weights computed from parameters: afresh in training, kept between calls in inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdpipe.models.linear import linear, pack, pays_to_pack

__all__ = ["DerivedWeights", "packed_linear"]

Key = tuple[object, ...]


class DerivedWeights(nn.Module):
    """Keeps what was computed from a module's parameters while these stay unchanged.

    With gradients enabled nothing is kept, so that training always differentiates through
    the computation. A change is seen through a tensor's version counter and address
    (`load_state_dict`, `.to()`, in-place operations); what those do not see, such as a fused
    optimiser, has a training pass or `train()` before it, and both forget everything.
    Writing through `.data` is seen by none of them. Has no state of its own to save.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[str, tuple[Key, tuple[Tensor, ...]]] = {}

    def __getstate__(self) -> dict[str, object]:
        """A copy or a pickle keeps nothing: packed weights cannot be copied."""
        return {**self.__dict__, "_kept": {}}

    def train(self, mode: bool = True) -> DerivedWeights:
        """Forget everything, whichever mode comes next."""
        self._kept.clear()
        return super().train(mode)

    def get(
        self,
        name: str,
        sources: Sequence[Tensor],
        compute: Callable[[], tuple[Tensor, ...]],
        extra: Key = (),
    ) -> tuple[Tensor, ...]:
        """What `compute` gives for `sources`; `extra` is whatever else it depends on."""
        stamps = None if torch.is_grad_enabled() else _stamps(sources)
        if stamps is None:
            self._kept.clear()
            return compute()
        key = (torch.is_autocast_enabled(sources[0].device.type), extra, stamps)
        kept = self._kept.get(name)
        if kept is None or kept[0] != key:
            kept = (key, compute())
            self._kept[name] = kept
        return kept[1]


def _stamps(sources: Sequence[Tensor]) -> Key | None:
    """Address and version of every tensor; None where versions are not counted."""
    try:
        return tuple([(source.data_ptr(), source._version) for source in sources])
    except RuntimeError:
        return None


def packed_linear(
    kept: DerivedWeights, layer: nn.Linear, inputs: Float[Tensor, "*B I"]
) -> Float[Tensor, "*B O"]:
    """`layer` of a decoder that sees few rows a call: its weight is kept packed in inference."""
    if not pays_to_pack(inputs, layer.out_features):
        return linear(inputs, layer.weight, layer.bias)
    name = f"packed {id(layer)}"
    (weight,) = kept.get(name, [layer.weight], lambda: (pack(layer.weight),))
    return linear(inputs, weight, layer.bias)
