"""What `import kdpipe` offers beside stores and models: recognition of waveforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdpipe.checkpoint import ModelBundle
from kdpipe.errors import DataError
from kdpipe.stages.decode import decode_waveforms
from kdpipe.stages.recognise import DecodeMode, SearchSettings, read_tokens

__all__ = ["decode"]


def decode(
    model: ModelBundle,
    waveforms: Sequence[NDArray[np.floating[Any]]],
    mode: DecodeMode = "auto",
    beam: int = 10,
    nbest: int = 1,
    mask_threshold: float = 0.99,
) -> list[list[str]]:
    """Recognise waveforms: for each, up to `nbest` texts, best first.

    `model` comes from `kdpipe.load_model`; the work is done on its device. `waveforms` are
    arrays of one channel, (samples,) at 16 kHz in [-1, 1], decoded together as one batch.
    `mode` is "auto" (the model's own search), "ctc" (greedy, one text), "mask-ctc" or "ar";
    `beam` is the width of the last two. Mask-CTC fills anew what the CTC is less sure of than
    `mask_threshold`, a probability (0.5 suits small students). A waveform too short for the
    encoder (below seven feature frames, 85 ms at the usual shift) reads as "".

    Raises `ConfigError` for a mode that the model cannot do or a beam below 1, `DataError` for
    an array of another shape or with values that are not finite, `UtteranceTooLongError` beyond
    15,000 encoder frames, ten minutes at the usual shift.
    """
    if not waveforms:
        return []
    settings = SearchSettings(mode, beam, nbest, mask_threshold=mask_threshold)
    found = decode_waveforms(model, [_checked(w) for w in waveforms], settings)
    return [[read_tokens(model.tokenizer, h.tokens) for h in hypotheses] for hypotheses in found]


def _checked(waveform: NDArray[np.floating[Any]]) -> torch.Tensor:
    """(samples,) float32, finite."""
    samples = np.asarray(waveform, np.float32)
    if samples.ndim != 1:
        raise DataError("waveform", f"of shape {samples.shape}", "Give one channel: (samples,)")
    if not np.isfinite(samples).all():
        raise DataError("waveform", "values that are not finite", "Mend the recording")
    return torch.from_numpy(samples)
