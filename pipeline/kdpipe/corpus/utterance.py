"""The record of one utterance, before anything is computed from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Utterance"]


@dataclass(frozen=True, slots=True)
class Utterance:
    """One stretch of speech and what was said in it.

    duration and offset are in seconds. `segment` is False when the whole file is the
    utterance, and True when it is the part from `offset` of `duration` seconds. `text` is None
    for unlabelled speech. `measured`: nobody stated the duration, it is what the file's header
    says, 0.0 for a file that cannot be read.
    """

    id: str
    audio: Path
    duration: float
    text: str | None = None
    speaker: str | None = None
    offset: float = 0.0
    segment: bool = False
    measured: bool = False
