"""From an N-best list to what a store keeps of it, and to a pseudo-label."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from kdpipe.losses.sequence import BLANK
from kdpipe.store import StoredHypothesis

__all__ = ["as_stored", "is_alignable", "nbest_status", "pseudo_label"]


def as_stored(
    found: Sequence[tuple[tuple[int, ...], float, float, float]],
) -> tuple[StoredHypothesis, ...]:
    """Hypotheses (tokens, attention, ctc and joint scores in nats) with P' of Eq. 9."""
    if not found:
        return ()
    scores = np.array([joint for *_, joint in found], dtype=np.float64)
    weights = np.exp(scores - scores.max())
    return tuple(
        StoredHypothesis(*entry, float(p))
        for entry, p in zip(found, weights / weights.sum(), strict=True)
    )


def is_alignable(tokens: Sequence[int], frames: int) -> bool:
    """Whether CTC can align `tokens` with `frames` encoder frames: one each, and a blank between
    equal neighbours. A blank among the tokens themselves never can."""
    repeats = sum(a == b for a, b in pairwise(tokens))
    return BLANK not in tokens and len(tokens) + repeats <= frames


def nbest_status(found: int, asked: int) -> str:
    """The status of a labelled utterance with `found` hypotheses of the `asked`."""
    if not found:
        return "no-nbest"
    return "ok" if found == asked else "short-nbest"


def pseudo_label(nbest: Sequence[tuple[int, ...]], frames: int) -> tuple[tuple[int, ...], str]:
    """The tokens that stand for an absent text, and the status; no tokens where none will do."""
    if not nbest:
        return (), "no-nbest"
    if not nbest[0]:
        return (), "empty"
    return (nbest[0], "pseudo") if is_alignable(nbest[0], frames) else ((), "unalignable")
