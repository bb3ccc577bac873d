"""Speed perturbation."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from kdpipe.features.audio import SAMPLE_RATE
from kdpipe.features.torchaudio_compat import resample

__all__ = ["perturb_speed", "speed_id"]


def perturb_speed(waveform: Float[Tensor, " samples"], factor: float) -> Float[Tensor, " changed"]:
    """Play `waveform` (16 kHz) `factor` times as fast, pitch included (Ko et al. 2015).

    What torchaudio's `speed` computes, but for its truncation of `factor * rate`, which makes
    rates like 18399 Hz (1.15) that no resampling kernel is small for.
    """
    if factor == 1.0:
        return waveform
    source = round(factor * SAMPLE_RATE)
    divisor = math.gcd(source, SAMPLE_RATE)
    return resample(waveform, source // divisor, SAMPLE_RATE // divisor)


def speed_id(utterance_id: str, factor: float) -> str:
    """The id of an utterance's perturbed copy: `sp0.9-ID`; unchanged speed keeps the id."""
    return utterance_id if factor == 1.0 else f"sp{factor:g}-{utterance_id}"
