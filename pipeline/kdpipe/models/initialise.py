"""Initial weights."""

from __future__ import annotations

from torch import nn

__all__ = ["initialise"]


def initialise(model: nn.Module) -> None:
    """Xavier-uniform matrices and zero biases, as ESPnet's recipes (`init: xavier_uniform`).

    Embeddings and norms keep their own initial values.
    """
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
        else:
            nn.init.zeros_(parameter)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.BatchNorm1d | nn.Embedding):
            module.reset_parameters()
