"""Kaldi-compatible log-mel filterbank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kdpipe.features.audio import SAMPLE_RATE
from kdpipe.features.torchaudio_compat import kaldi_fbank

__all__ = [
    "FEATURE_DIM",
    "FRAME_LENGTH_SECONDS",
    "FRAME_SHIFT_SECONDS",
    "KaldiFilterbank",
    "log_mel",
    "num_frames",
]

FEATURE_DIM = 80
FRAME_LENGTH_SECONDS = 0.025
FRAME_SHIFT_SECONDS = 0.010
# Kaldi computes on 16-bit integers; on [-1, 1] its floor on the log would cut quiet speech.
SAMPLE_SCALE = 32768.0
WINDOW = round(FRAME_LENGTH_SECONDS * SAMPLE_RATE)
BLOCK_FRAMES = 300
SHIFT = round(FRAME_SHIFT_SECONDS * SAMPLE_RATE)


def num_frames(samples: int) -> int:
    """Frames of a 16 kHz waveform of `samples`: only whole windows (Kaldi's snip_edges)."""
    return 0 if samples < WINDOW else 1 + (samples - WINDOW) // SHIFT


def log_mel(waveform: Float[Tensor, " samples"]) -> Float[Tensor, "T 80"]:
    """80 log-mel energies (natural log) of 25 ms windows every 10 ms.

    `waveform` is 16 kHz in [-1, 1]. As Kaldi's compute-fbank-feats with `--num-mel-bins=80
    --dither=0`: Povey window, pre-emphasis 0.97, 20 Hz to Nyquist, energies floored at float32
    epsilon. Fewer than 400 samples give no frame.
    """
    frames = num_frames(len(waveform))
    if not frames:
        return torch.empty(0, FEATURE_DIM)
    # Frames are independent: blocks that fit the cache are faster, and bound the memory.
    starts = range(0, frames, BLOCK_FRAMES)
    blocks = [waveform[i * SHIFT : (i + BLOCK_FRAMES - 1) * SHIFT + WINDOW] for i in starts]
    return torch.cat([_kaldi_log_mel(block) for block in blocks])


def _kaldi_log_mel(waveform: Float[Tensor, " samples"]) -> Float[Tensor, "T 80"]:
    return kaldi_fbank(
        waveform[None] * SAMPLE_SCALE,
        num_mel_bins=FEATURE_DIM,
        sample_frequency=float(SAMPLE_RATE),
        frame_length=FRAME_LENGTH_SECONDS * 1000,
        frame_shift=FRAME_SHIFT_SECONDS * 1000,
        dither=0.0,
    )


@dataclass(frozen=True, slots=True)
class KaldiFilterbank:
    """This filterbank as a kind of features beside others; it has no settings to choose."""

    @property
    def dim(self) -> int:
        """Values a frame."""
        return FEATURE_DIM

    @property
    def frame_shift_seconds(self) -> float:
        """Seconds from a frame to the next."""
        return FRAME_SHIFT_SECONDS

    def num_frames(self, samples: int) -> int:
        """Frames of a 16 kHz waveform of `samples`."""
        return num_frames(samples)

    def describe(self) -> dict[str, object]:
        """What identifies these features in digests and model files."""
        return {
            "kind": "kaldi-fbank",
            "sample_rate": SAMPLE_RATE,
            "mel_bins": FEATURE_DIM,
            "frame_length_seconds": FRAME_LENGTH_SECONDS,
            "frame_shift_seconds": FRAME_SHIFT_SECONDS,
            "dither": 0.0,
            "snip_edges": True,
        }

    def log_mel(self, waveform: Float[Tensor, " samples"]) -> Float[Tensor, "T 80"]:
        """The features of a 16 kHz waveform in [-1, 1]."""
        return log_mel(waveform)
