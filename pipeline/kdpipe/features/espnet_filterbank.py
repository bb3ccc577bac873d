"""ESPnet's default log-mel front end, for models trained with it.

Same result as its `DefaultFrontend`: STFT (by default centred with reflected ends, under a
periodic Hann window), power spectrum, Slaney-style mel filters of unit area (as librosa's
defaults), natural log floored at 1e-10. The waveform stays in [-1, 1]; there is no pre-emphasis
and no dither.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kdpipe.features.audio import SAMPLE_RATE

__all__ = ["WINDOWS", "EspnetFilterbank", "Window", "slaney_filters"]

Window = Literal["hann", "hamming", "blackman"]
WINDOWS = {
    "hann": torch.hann_window,
    "hamming": torch.hamming_window,
    "blackman": torch.blackman_window,
}
FLOOR = 1e-10
# Below 1 kHz Slaney's scale is linear, above it logarithmic: 27 steps a factor of 6.4.
LINEAR_HERTZ_PER_MEL = 200.0 / 3.0
BREAK_HERTZ = 1000.0
LOG_STEP = math.log(6.4) / 27.0


@dataclass(frozen=True, slots=True)
class EspnetFilterbank:
    """Settings of the front end, in samples at 16 kHz and hertz.

    `center`: frames are centred on multiples of the hop, the ends reflected; otherwise only
    whole FFTs inside the waveform make frames.
    """

    n_fft: int = 512
    win_length: int = 400
    hop_length: int = 160
    n_mels: int = 80
    fmin: float = 0.0
    fmax: float = SAMPLE_RATE / 2
    window: Window = "hann"
    center: bool = True

    @property
    def dim(self) -> int:
        """Values a frame."""
        return self.n_mels

    @property
    def frame_shift_seconds(self) -> float:
        """Seconds from a frame to the next."""
        return self.hop_length / SAMPLE_RATE

    def num_frames(self, samples: int) -> int:
        """Frames of a waveform; 0 where it is too short to reflect, or for one FFT."""
        if self.center:
            return 1 + samples // self.hop_length if samples > self.n_fft // 2 else 0
        return 1 + (samples - self.n_fft) // self.hop_length if samples >= self.n_fft else 0

    def describe(self) -> dict[str, object]:
        """What identifies these features in digests and model files."""
        return {"kind": "espnet-filterbank", "sample_rate": SAMPLE_RATE, **asdict(self)}

    def log_mel(self, waveform: Float[Tensor, " samples"]) -> Float[Tensor, "T M"]:
        """Log-mel energies (natural log) of a 16 kHz waveform in [-1, 1], one row a hop."""
        if not self.num_frames(len(waveform)):
            return torch.empty(0, self.n_mels)
        spectrum = torch.stft(
            waveform,
            n_fft=self.n_fft,
            hop_length=self.hop_length,
            win_length=self.win_length,
            window=WINDOWS[self.window](self.win_length),
            center=self.center,
            pad_mode="reflect",
            return_complex=True,
        )
        power = torch.view_as_real(spectrum).square().sum(2)
        return (power.T @ slaney_filters(self)).clamp(min=FLOOR).log()


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
