"""How large a model must be, known before anything of it is allocated."""

from __future__ import annotations

from kdpipe.models.config import ModelConfig

__all__ = ["least_parameters"]


def least_parameters(config: ModelConfig) -> int:
    """Entries of a model's matrices and kernels: most of its parameters, never more than all."""
    dim, conformer = config.dim, config.encoder == "conformer"
    forwards = 1 + (conformer and config.macaron)
    convolution = (3 * dim + config.kernel) * (conformer and config.convolution)
    encoder = dim * (4 * dim + 2 * forwards * config.inner + convolution)
    decoder = dim * (8 * dim + 2 * (config.decoder_inner or config.inner))
    bands = ((config.feature_dim - 1) // 2 - 1) // 2
    ends = dim * (3 * config.vocab_size + dim * (9 + bands))
    return config.encoder_layers * encoder + config.decoder_layers * decoder + ends
