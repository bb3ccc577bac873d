"""Kaldi-compatible log-mel filterbank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kdpipe.errors import ConfigError
from kdpipe.features.audio import SAMPLE_RATE
from kdpipe.features.torchaudio_compat import kaldi_fbank

__all__ = [
    "FEATURE_DIM",
    "FRAME_LENGTH_SECONDS",
    "FRAME_SHIFT_SECONDS",
    "KaldiFilterbank",
]

FEATURE_DIM = 80
FRAME_LENGTH_SECONDS = 0.025
FRAME_SHIFT_SECONDS = 0.010
# Kaldi computes on 16-bit integers; on [-1, 1] its floor on the log would cut quiet speech.
SAMPLE_SCALE = 32768.0
WINDOW = round(FRAME_LENGTH_SECONDS * SAMPLE_RATE)
BLOCK_FRAMES = 300
SHORTEST_SHIFT, LONGEST_SHIFT = 40, 320


@dataclass(frozen=True, slots=True)
class KaldiFilterbank:
    """Kaldi's log-mel energies: 80 bins of 25 ms windows.

    frame_shift_seconds: from a frame to the next, whole samples from 2.5 to 20 ms. Kaldi's
    default is 10 ms; less gives more encoder frames to the tokens of fast speech. Raises
    `ConfigError` for another.
    """

    frame_shift_seconds: float = FRAME_SHIFT_SECONDS

    def __post_init__(self) -> None:
        samples = self.frame_shift_seconds * SAMPLE_RATE
        if not SHORTEST_SHIFT <= samples <= LONGEST_SHIFT or abs(samples - self.shift) > 1e-6:
            raise ConfigError(
                "features", "frame_shift_seconds", self.frame_shift_seconds,
                f"not whole samples of {SAMPLE_RATE} Hz from 0.0025 to 0.02 s",
                "Take 0.01 (usual), 0.0075 or 0.005",
            )  # fmt: skip

    @property
    def dim(self) -> int:
        """Values a frame."""
        return FEATURE_DIM

    @property
    def shift(self) -> int:
        """Samples from a frame to the next."""
        return round(self.frame_shift_seconds * SAMPLE_RATE)

    def num_frames(self, samples: int) -> int:
        """Frames of a 16 kHz waveform: only whole windows (Kaldi's snip_edges)."""
        return 0 if samples < WINDOW else 1 + (samples - WINDOW) // self.shift

    def describe(self) -> dict[str, object]:
        """What identifies these features in digests and model files."""
        return {
            "kind": "kaldi-fbank",
            "sample_rate": SAMPLE_RATE,
            "mel_bins": FEATURE_DIM,
            "frame_length_seconds": FRAME_LENGTH_SECONDS,
            "frame_shift_seconds": self.frame_shift_seconds,
            "dither": 0.0,
            "snip_edges": True,
        }

    def log_mel(self, waveform: Float[Tensor, " samples"]) -> Float[Tensor, "T 80"]:
        """80 log-mel energies (natural log) a frame of a 16 kHz waveform in [-1, 1].

        As Kaldi's compute-fbank-feats with `--num-mel-bins=80 --dither=0`: Povey window,
        pre-emphasis 0.97, 20 Hz to Nyquist, energies floored at float32 epsilon. Fewer than
        400 samples give no frame.
        """
        frames, shift = self.num_frames(len(waveform)), self.shift
        if not frames:
            return torch.empty(0, FEATURE_DIM)
        # Frames are independent: blocks that fit the cache are faster, and bound the memory.
        starts = range(0, frames, BLOCK_FRAMES)
        ends = [(start + BLOCK_FRAMES - 1) * shift + WINDOW for start in starts]
        blocks = [waveform[i * shift : end] for i, end in zip(starts, ends, strict=True)]
        return torch.cat([self._block(block) for block in blocks])

    def _block(self, waveform: Float[Tensor, " samples"]) -> Float[Tensor, "T 80"]:
        return kaldi_fbank(
            waveform[None] * SAMPLE_SCALE,
            num_mel_bins=FEATURE_DIM,
            sample_frequency=float(SAMPLE_RATE),
            frame_length=FRAME_LENGTH_SECONDS * 1000,
            frame_shift=self.frame_shift_seconds * 1000,
            dither=0.0,
        )
