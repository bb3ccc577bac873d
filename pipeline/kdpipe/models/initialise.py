"""Initial weights."""

from __future__ import annotations

from torch import nn

__all__ = ["initialise"]


def initialise(model: nn.Module) -> None:
    """Xavier-uniform matrices, as ESPnet's recipes (`init: xavier_uniform`); torch's own biases.

    ESPnet zeroes the biases too. Frames that SpecAugment masks are all 0, so they would then
    enter the first LayerNorm as zero vectors, whose gradient is 1 / sqrt(eps) = 1e6 a layer:
    measured, gradient norms of 1e10 for the first updates. Embeddings and norms keep their own
    initial values.
    """
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.reset_parameters()
