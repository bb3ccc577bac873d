"""Search settings, checked, and the limits that keep a search's memory bounded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kdpipe.errors import ConfigError, UtteranceTooLongError

__all__ = [
    "MAX_FRAMES",
    "JointSettings",
    "MaskCtcSettings",
    "check_lengths",
    "group_by_memory",
]

MAX_FRAMES = 15_000
"""Encoder frames an utterance may have: ten minutes where a frame is 40 ms."""

_GROUP_ELEMENTS = 1 << 27
"""Frames x classes searched together: 512 MiB of CTC log-posteriors."""


@dataclass(frozen=True, slots=True)
class JointSettings:
    """Joint CTC/attention beam search; see `joint_beam_search` for the meanings."""

    beam: int
    ctc_weight: float
    nbest: int
    length_bonus: float
    max_length_ratio: float
    min_length_ratio: float
    pre_beam_ratio: float

    def __post_init__(self) -> None:
        _require(self.beam >= 1, "beam", self.beam, "must be 1 or more")
        _require(self.nbest >= 1, "nbest", self.nbest, "must be 1 or more")
        _require(0.0 <= self.ctc_weight <= 1.0, "ctc_weight", self.ctc_weight, "must be in [0, 1]")
        _require(
            math.isfinite(self.length_bonus), "length_bonus", self.length_bonus, "must be finite"
        )
        for name in ("max_length_ratio", "min_length_ratio"):
            value = getattr(self, name)
            _require(0.0 <= value <= 1.0, name, value, "must be in [0, 1]")
        _require(
            1.0 <= self.pre_beam_ratio < math.inf,
            "pre_beam_ratio",
            self.pre_beam_ratio,
            "must be 1 or more",
        )

    def candidates(self, vocabulary: int) -> int:
        """Tokens a hypothesis that the CTC scores: all of them when it decides alone."""
        if self.ctc_weight == 1.0:
            return vocabulary
        return min(vocabulary, int(self.pre_beam_ratio * self.beam))

    def longest(self, frames: int) -> int:
        """Tokens a hypothesis of an utterance of so many encoder frames may have."""
        if self.max_length_ratio == 0.0:
            return frames
        return max(1, int(self.max_length_ratio * frames))

    def shortest(self, frames: int) -> int:
        """Tokens it must have, at most `longest`."""
        return min(int(self.min_length_ratio * frames), self.longest(frames))


@dataclass(frozen=True, slots=True)
class MaskCtcSettings:
    """Mask-CTC search; see `mask_ctc_search` for the meanings."""

    beam: int
    tokens_per_iteration: int
    mask_threshold: float
    nbest: int
    ctc_rescoring_weight: float

    def __post_init__(self) -> None:
        for name in ("beam", "tokens_per_iteration", "nbest"):
            value = getattr(self, name)
            _require(value >= 1, name, value, "must be 1 or more")
        threshold, weight = self.mask_threshold, self.ctc_rescoring_weight
        _require(threshold >= 0.0, "mask_threshold", threshold, "must be 0 or more")
        _require(0.0 <= weight < math.inf, "ctc_rescoring_weight", weight, "must be 0 or more")

    @property
    def completions(self) -> int:
        """Completed hypotheses that must be the true best: all when they are scored anew."""
        if self.ctc_rescoring_weight > 0.0:
            return self.beam
        return min(self.nbest, self.beam)


def check_lengths(lengths: Sequence[int]) -> None:
    """Refuse utterances whose search would need unbounded memory."""
    for frames in lengths:
        if frames > MAX_FRAMES:
            raise UtteranceTooLongError(frames, MAX_FRAMES)


def group_by_memory(lengths: Sequence[int], vocabulary: int) -> Iterator[list[int]]:
    """Split a batch into runs of utterances, longest first, that fit the memory together.

    Empty utterances are left out: they need no search.
    """
    order = sorted((i for i, frames in enumerate(lengths) if frames), key=lambda i: -lengths[i])
    group: list[int] = []
    for index in order:
        if group and (len(group) + 1) * lengths[group[0]] * vocabulary > _GROUP_ELEMENTS:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _require(fine: bool, key: str, value: object, problem: str) -> None:
    if not fine:
        raise ConfigError("search", key, value, problem, "See kdpipe decode --help")
