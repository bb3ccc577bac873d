"""What `kdpipe prepare` does with a chunk of utterances, in a worker process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdpipe.corpus.utterance import Utterance
from kdpipe.errors import DataError, InputNotFoundError
from kdpipe.features.audio import SAMPLE_RATE, Channel, read_audio
from kdpipe.features.kinds import Filterbank
from kdpipe.features.speed import perturb_speed, speed_id
from kdpipe.models.lengths import subsampled_lengths
from kdpipe.search.settings import MAX_FRAMES
from kdpipe.text.normalise import TextCase, TextSpaces, normalise
from kdpipe.text.tokenizer import Tokenizer

__all__ = [
    "Chunk",
    "ChunkResult",
    "ChunkSettings",
    "Reason",
    "file_stamp",
    "process_chunk",
    "use_one_thread",
]

Reason = Literal[
    "duplicate-id",
    "missing-file",
    "undecodable",
    "empty-audio",
    "silent-audio",
    "not-finite-audio",
    "duration-mismatch",
    "too-short",
    "too-long",
    "no-text",
    "empty-text",
    "unknown-token",
    "too-many-tokens",
]
# A recording is silent below -80 dB of full scale: three steps of 16-bit audio.
SILENCE_PEAK = 1e-4
DURATION_TOLERANCE = 0.02
# Manifests round to 10 ms: half of that says nothing, however short the utterance.
DURATION_ROUNDING_SECONDS = 0.005


@dataclass(frozen=True)
class ChunkSettings:
    """What the preparation of one utterance depends on.

    `to_learn`: of a training split. Others keep texts that no model can be right about, with
    unknown characters or more tokens than frames: they count as errors there.
    """

    tokenizer: Path
    fingerprint: str
    filterbank: Filterbank
    channel: Channel
    case: TextCase
    spaces: TextSpaces
    speeds: tuple[float, ...]
    allow_unlabelled: bool
    to_learn: bool


@dataclass(frozen=True)
class Chunk:
    """Utterances start..start + len(utterances) - 1 of a split."""

    start: int
    utterances: tuple[Utterance, ...]
    settings: ChunkSettings


@dataclass(frozen=True)
class ChunkResult:
    """The features of a chunk's entries one after the other, and their records."""

    stop: int
    features: NDArray[np.float16]
    accepted: list[dict[str, Any]]
    rejected: list[dict[str, Any]]


@dataclass(frozen=True)
class _Source:
    """One usable utterance, at the speed it was recorded."""

    utterance: Utterance
    text: str | None
    tokens: tuple[int, ...]
    waveform: Tensor


class _UnusableError(Exception):
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def use_one_thread() -> None:
    """Torch on one thread: the processes already fill the cores."""
    torch.set_num_threads(1)


def process_chunk(chunk: Chunk) -> ChunkResult:
    """Compute the features of every usable utterance; list the others with their reasons."""
    features: list[Tensor] = [torch.empty(0, chunk.settings.filterbank.dim)]
    accepted: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    for utterance in chunk.utterances:
        try:
            source = _read_source(utterance, chunk.settings)
        except _UnusableError as problem:
            # Once a speed, as a usable one counts: no speed may make a bad share look smaller.
            speeds = chunk.settings.speeds
            rejected += [_rejection(utterance, speed, problem) for speed in speeds]
            continue
        for speed in chunk.settings.speeds:
            try:
                entry, record = _make_entry(source, speed, chunk.settings)
            except _UnusableError as problem:
                rejected.append(_rejection(utterance, speed, problem))
                continue
            features.append(entry)
            accepted.append(record)
    stacked: NDArray[np.float16] = torch.cat(features).half().numpy()
    return ChunkResult(chunk.start + len(chunk.utterances), stacked, accepted, rejected)


def file_stamp(path: Path) -> list[int] | None:
    """[bytes, modification time in ns]; None for a missing file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _rejection(utterance: Utterance, speed: float, problem: _UnusableError) -> dict[str, Any]:
    return {
        "id": speed_id(utterance.id, speed),
        "reason": problem.reason,
        "detail": problem.detail,
        "audio_filepath": str(utterance.audio),
        "stamp": file_stamp(utterance.audio),
    }


def _read_source(utterance: Utterance, settings: ChunkSettings) -> _Source:
    text = _usable_text(utterance, settings)
    tokens = () if text is None else _known_tokens(text, settings)
    return _Source(utterance, text, tokens, _usable_waveform(utterance, settings.channel))


def _usable_text(utterance: Utterance, settings: ChunkSettings) -> str | None:
    if utterance.text is None and not settings.allow_unlabelled:
        raise _UnusableError("no-text", "pass --allow-unlabelled to keep speech without text")
    if utterance.text is None:
        return None
    text = normalise(utterance.text, settings.case, settings.spaces)
    if not text:
        raise _UnusableError("empty-text", "no characters")
    return text


def _known_tokens(text: str, settings: ChunkSettings) -> tuple[int, ...]:
    tokenizer = _tokenizer(settings.tokenizer, settings.fingerprint)
    tokens = tuple(tokenizer.encode(text))
    if settings.to_learn and tokenizer.unk_id in tokens:
        characters = dict.fromkeys(text)
        unknown = [char for char in characters if tokenizer.unk_id in tokenizer.encode(char)]
        raise _UnusableError("unknown-token", " ".join(unknown))
    return tokens


@lru_cache(maxsize=1)
def _tokenizer(path: Path, fingerprint: str) -> Tokenizer:
    """The tokenizer, loaded once a process; the fingerprint tells apart what a path has held."""
    return Tokenizer.load(path)


def _usable_waveform(utterance: Utterance, channel: Channel) -> Tensor:
    duration = utterance.duration if utterance.segment else None
    try:
        waveform = read_audio(utterance.audio, utterance.offset, duration, channel)
    except InputNotFoundError as error:
        raise _UnusableError("missing-file", error.message) from error
    except DataError as error:
        raise _UnusableError("undecodable", error.problem) from error
    if not len(waveform):
        raise _UnusableError("empty-audio", "no samples")
    if not bool(torch.isfinite(waveform).all()):
        raise _UnusableError("not-finite-audio", "NaN or infinite samples")
    peak = float((waveform - waveform.mean()).abs().max())
    if peak < SILENCE_PEAK:
        raise _UnusableError("silent-audio", f"peak {peak:.1e} of full scale")
    _require_duration(len(waveform) / SAMPLE_RATE, utterance.duration)
    return waveform


def _require_duration(found: float, declared: float) -> None:
    tolerance = max(DURATION_TOLERANCE * declared, DURATION_ROUNDING_SECONDS)
    if abs(found - declared) > tolerance:
        raise _UnusableError("duration-mismatch", f"{found:.3f} s, not {declared:.3f} s")


def _make_entry(
    source: _Source, speed: float, settings: ChunkSettings
) -> tuple[Tensor, dict[str, Any]]:
    utterance = source.utterance
    waveform = perturb_speed(source.waveform, speed)
    features = settings.filterbank.log_mel(waveform)
    if not bool(torch.isfinite(features.half()).all()):
        raise _UnusableError("not-finite-audio", "samples too large for features")
    encoder_frames = _usable_frames(len(features))
    if settings.to_learn:
        _require_alignable(source.tokens, encoder_frames)
    return features, {
        "id": speed_id(utterance.id, speed),
        "num_frames": len(features),
        "tokens": list(source.tokens),
        "text": source.text,
        "duration": len(waveform) / SAMPLE_RATE,
        "speaker": utterance.speaker,
        "audio": str(utterance.audio),
        "offset": utterance.offset,
        "source_duration": utterance.duration if utterance.segment else None,
        "speed": speed,
    }


def _usable_frames(frames: int) -> int:
    """How many encoder frames there are: one at least, and no more than a search takes."""
    encoder_frames = subsampled_lengths(frames)
    if encoder_frames < 1:
        raise _UnusableError("too-short", f"{frames} feature frames")
    if encoder_frames > MAX_FRAMES:
        raise _UnusableError("too-long", f"{encoder_frames} encoder frames, more than {MAX_FRAMES}")
    return encoder_frames


def _require_alignable(tokens: Sequence[int], encoder_frames: int) -> None:
    """CTC needs a frame a token, and a blank between equal neighbours."""
    needed = len(tokens) + sum(a == b for a, b in pairwise(tokens))
    if needed > encoder_frames:
        raise _UnusableError("too-many-tokens", f"{needed} needed, {encoder_frames} encoder frames")
