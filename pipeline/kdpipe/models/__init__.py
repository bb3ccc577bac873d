"""Recognition models: Conformer encoder, decoders, CTC head."""

from __future__ import annotations

from kdpipe.models.config import ModelConfig, size_by_name, size_names
from kdpipe.models.decoder import CausalDecoder, MaskedDecoder
from kdpipe.models.lengths import SUBSAMPLING, subsampled_lengths
from kdpipe.models.memory import Memory, SelfAttentionCache, reorder
from kdpipe.models.recognition import Encoded, RecognitionModel, build_model, count_parameters
from kdpipe.models.sizes import SizeRow, size_table

__all__ = [
    "SUBSAMPLING",
    "CausalDecoder",
    "Encoded",
    "MaskedDecoder",
    "Memory",
    "ModelConfig",
    "RecognitionModel",
    "SelfAttentionCache",
    "SizeRow",
    "build_model",
    "count_parameters",
    "reorder",
    "size_by_name",
    "size_names",
    "size_table",
    "subsampled_lengths",
]
