"""ESPnet's default log-mel front end, for models trained with it.

Same result as its `DefaultFrontend`: centred STFT with reflected ends, periodic Hann window,
power spectrum, Slaney-style mel filters of unit area (as librosa's defaults), natural log
floored at 1e-10. The waveform stays in [-1, 1]; there is no pre-emphasis and no dither.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from kdpipe.features.audio import SAMPLE_RATE

__all__ = ["EspnetFilterbank", "espnet_log_mel", "slaney_filters", "utterance_mvn"]

FLOOR = 1e-10
# Below 1 kHz Slaney's scale is linear, above it logarithmic: 27 steps a factor of 6.4.
LINEAR_HERTZ_PER_MEL = 200.0 / 3.0
BREAK_HERTZ = 1000.0
LOG_STEP = math.log(6.4) / 27.0


@dataclass(frozen=True, slots=True)
class EspnetFilterbank:
    """Settings of the front end, in samples at 16 kHz and hertz."""

    n_fft: int = 512
    win_length: int = 400
    hop_length: int = 160
    n_mels: int = 80
    fmin: float = 0.0
    fmax: float = SAMPLE_RATE / 2

    def num_frames(self, samples: int) -> int:
        """Frames of a waveform; 0 where it is too short to reflect (half an FFT)."""
        return 1 + samples // self.hop_length if samples > self.n_fft // 2 else 0

    def describe(self) -> dict[str, object]:
        """What identifies these features in digests and model files."""
        return {"kind": "espnet-filterbank", "sample_rate": SAMPLE_RATE, **asdict(self)}


def espnet_log_mel(
    waveform: Float[Tensor, " samples"], settings: EspnetFilterbank | None = None
) -> Float[Tensor, "T M"]:
    """Log-mel energies (natural log), one row every `hop_length` samples.

    `waveform` is 16 kHz in [-1, 1]; half an FFT or fewer samples give no frame.
    """
    shape = settings or EspnetFilterbank()
    if not shape.num_frames(len(waveform)):
        return torch.empty(0, shape.n_mels)
    spectrum = torch.stft(
        waveform,
        n_fft=shape.n_fft,
        hop_length=shape.hop_length,
        win_length=shape.win_length,
        window=torch.hann_window(shape.win_length),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    power = torch.view_as_real(spectrum).square().sum(2)
    return (power.T @ slaney_filters(shape)).clamp(min=FLOOR).log()


@lru_cache(maxsize=8)
def slaney_filters(settings: EspnetFilterbank) -> Float[Tensor, "bins M"]:
    """Triangular filters, one column a mel band, each of unit area in hertz."""
    bins = settings.n_fft // 2 + 1
    frequencies = torch.linspace(0.0, SAMPLE_RATE / 2, bins, dtype=torch.float64)
    lowest, highest = _to_mel(settings.fmin), _to_mel(settings.fmax)
    mels = torch.linspace(lowest, highest, settings.n_mels + 2, dtype=torch.float64)
    edges = _to_hertz(mels)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (frequencies[:, None] - left) / (centre - left)
    falling = (right - frequencies[:, None]) / (right - centre)
    triangles = torch.minimum(rising, falling).clamp(min=0.0)
    return (triangles * (2.0 / (right - left))).float()


def _to_mel(hertz: float) -> float:
    if hertz < BREAK_HERTZ:
        return hertz / LINEAR_HERTZ_PER_MEL
    return BREAK_HERTZ / LINEAR_HERTZ_PER_MEL + math.log(hertz / BREAK_HERTZ) / LOG_STEP


def _to_hertz(mels: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    break_mel = BREAK_HERTZ / LINEAR_HERTZ_PER_MEL
    logarithmic = BREAK_HERTZ * torch.exp(LOG_STEP * (mels - break_mel))
    return torch.where(mels < break_mel, mels * LINEAR_HERTZ_PER_MEL, logarithmic)


def utterance_mvn(features: Float[Tensor, "T F"], variance: bool = False) -> Float[Tensor, "T F"]:
    """ESPnet's `utterance_mvn`: subtract the utterance's own mean, divide by its deviation."""
    if not len(features):
        return features
    centred = features - features.mean(0)
    if not variance:
        return centred
    return centred / centred.square().mean(0).sqrt().clamp(min=1e-20)
