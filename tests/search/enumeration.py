"""CTC by enumerating every alignment: slow, and plainly right."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

Tokens = tuple[int, ...]


def collapse(alignment: Tokens, blank: int = 0) -> Tokens:
    """The label sequence of a frame-by-frame alignment: repeats merged, then blanks dropped."""
    merged = [token for token, _ in itertools.groupby(alignment)]
    return tuple(token for token in merged if token != blank)


def sequence_log_probs(log_probs: NDArray[np.float64]) -> dict[Tokens, float]:
    """log P(y) of every label sequence y that (T, V) frame log-posteriors can spell."""
    frames, vocabulary = log_probs.shape
    terms: dict[Tokens, list[float]] = {}
    for alignment in itertools.product(range(vocabulary), repeat=frames):
        score = float(sum(log_probs[t, token] for t, token in enumerate(alignment)))
        terms.setdefault(collapse(alignment), []).append(score)
    return {tokens: log_sum(scores) for tokens, scores in terms.items()}


def prefix_log_prob(sequences: dict[Tokens, float], prefix: Tokens) -> float:
    """log of the total probability of all sequences that start with `prefix`."""
    scores = [score for tokens, score in sequences.items() if tokens[: len(prefix)] == prefix]
    return log_sum(scores)


def log_sum(scores: list[float]) -> float:
    if not scores:
        return -math.inf
    top = max(scores)
    return top + math.log(sum(math.exp(score - top) for score in scores))
