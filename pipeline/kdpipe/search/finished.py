"""What an autoregressive search has completed for one utterance, and when it may stop."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

__all__ = ["ArHypothesis", "FinishedHypotheses"]

_END_MARGIN = 10.0
_END_LENGTHS = 3


@dataclass(frozen=True, slots=True)
class ArHypothesis:
    """A completed hypothesis of an autoregressive model; log-probabilities in nats.

    `tokens` without sos/eos. `attention` and `ctc` are unweighted and include the end of
    sentence; `score` is their weighted sum plus the length bonus. A hypothesis that the
    maximum length cut off has no end-of-sentence term in any of the three.
    """

    tokens: tuple[int, ...]
    score: float
    attention: float
    ctc: float


class FinishedHypotheses:
    """The `nbest` best completed hypotheses, and the best score of each length.

    Equal scores: the one completed first (the shorter, then the better-ranked) stays ahead.
    """

    def __init__(self, nbest: int) -> None:
        self._nbest = nbest
        self._keys: list[tuple[float, int]] = []
        self._hypotheses: list[ArHypothesis] = []
        self._best_of_length: dict[int, float] = {}
        self._best = -math.inf
        self._count = 0

    def add(self, hypothesis: ArHypothesis) -> None:
        length, score = len(hypothesis.tokens), hypothesis.score
        previous = self._best_of_length.get(length, -math.inf)
        self._best_of_length[length] = max(previous, score)
        self._best = max(self._best, score)
        self._count += 1
        key = (-score, self._count)
        place = bisect.bisect(self._keys, key)
        self._keys.insert(place, key)
        self._hypotheses.insert(place, hypothesis)
        del self._keys[self._nbest :], self._hypotheses[self._nbest :]

    @property
    def hypotheses(self) -> list[ArHypothesis]:
        """Best first."""
        return list(self._hypotheses)

    @property
    def bound(self) -> float:
        """What a further hypothesis must exceed to enter the n-best."""
        return -self._keys[-1][0] if len(self._keys) == self._nbest else -math.inf

    def end_detected(self, step: int) -> bool:
        """ESPnet's end detection after step `step` (from 0), M = 3, D_end = -10 nats.

        True when the best hypotheses completed at each of the steps step-2, step-3 and
        step-4 (so many tokens) are all more than 10 nats below the best of all (Watanabe et
        al. 2017, Eq. 50; the peer counts sos and eos into a length, hence the delay of two).
        """
        lengths = range(step - 1 - _END_LENGTHS, step - 1)
        return all(
            self._best_of_length.get(length, math.inf) < self._best - _END_MARGIN
            for length in lengths
        )
