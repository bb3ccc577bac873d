"""Read audio of any rate and channel count as 16 kHz mono."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import torch
from jaxtyping import Float
from torch import Tensor

from kdpipe.errors import DataError, InputNotFoundError
from kdpipe.features.torchaudio_compat import resample

__all__ = ["SAMPLE_RATE", "Channel", "read_audio"]

SAMPLE_RATE = 16000
Channel = Literal["mix", "first"]
REMEDY = "Convert it to WAV or FLAC, or take it out of the manifest"


def read_audio(
    path: Path, offset: float = 0.0, duration: float | None = None, channel: Channel = "mix"
) -> Float[Tensor, " samples"]:
    """Read `path` as float32 in [-1, 1] at 16 kHz, mono.

    `offset` and `duration` (seconds) choose a part; past the end of the file the result is
    shorter than asked. `channel` mixes all channels (mean) or takes the first. Any format
    libsndfile reads; other rates go through torchaudio's windowed-sinc resampler.

    Raises `InputNotFoundError` for a missing file and `DataError` for one that cannot be decoded.
    """
    _require_file(path)
    try:
        with soundfile.SoundFile(str(path)) as source:
            rate = int(source.samplerate)
            frames = _read_part(source, offset, duration)
    except (soundfile.LibsndfileError, OSError, ValueError, MemoryError) as error:
        # The last two: a header that lies about the length, as FLAC from a pipe has it.
        raise DataError(str(path), f"cannot be decoded ({error})", REMEDY) from error
    mono = frames.mean(axis=1) if channel == "mix" else frames[:, 0]
    waveform = torch.from_numpy(np.ascontiguousarray(mono))
    if rate == SAMPLE_RATE or not len(waveform):
        return waveform
    return resample(waveform, rate, SAMPLE_RATE)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise InputNotFoundError(path, "audio file", "Check the manifest's paths")


def _read_part(
    source: soundfile.SoundFile, offset: float, duration: float | None
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    start = min(round(offset * source.samplerate), source.frames)
    if start:
        source.seek(start)
    count = -1 if duration is None else round(duration * source.samplerate)
    frames: np.ndarray[tuple[int, int], np.dtype[np.float32]] = source.read(
        count, dtype="float32", always_2d=True
    )
    return frames
