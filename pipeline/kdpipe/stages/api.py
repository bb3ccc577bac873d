"""What `import kdpipe` offers beside stores and models: recognition of waveforms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kdpipe.checkpoint import ModelBundle
from kdpipe.stages.decode import decode_waveforms
from kdpipe.stages.recognise import DecodeMode, SearchSettings, read_tokens

__all__ = ["decode"]


def decode(
    model: ModelBundle,
    waveforms: Sequence[NDArray[np.float32]],
    mode: DecodeMode = "auto",
    beam: int = 10,
    nbest: int = 1,
) -> list[list[str]]:
    """Texts of 16 kHz mono waveforms ((samples,), float32 in [-1, 1]), best first.

    `mode` and `beam` are those of `kdpipe decode`. Raises `ConfigError` for a mode that the
    model cannot do.
    """
    settings = SearchSettings(mode=mode, beam=beam, nbest=nbest)
    found = decode_waveforms(model, [torch.from_numpy(w) for w in waveforms], settings)
    return [[read_tokens(model.tokenizer, h.tokens) for h in hypotheses] for hypotheses in found]
