"""Made-up teacher outputs that look like a trained recogniser's, at 5000 classes.

Low-rank logits with a Zipf bias; CTC frames are blank, between, or on a token, each with its own
log-odds of blank; decoder positions are mostly sure, some torn, some at a loss. Calibrated to
p_blank > 0.99 on 76% of the frames, mean entropy 0.10 nat a frame and 0.25 nat a token (99th
percentile 3.3), 3.45 tokens a second, utterances of 10 s on average.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdpipe.store import (
    StoredHypothesis,
    StoreHeader,
    TeacherIdentity,
    TokenizerIdentity,
    UtteranceTargets,
    sparsify,
)

__all__ = ["VOCABULARY", "DenseUtterance", "SyntheticTeacher", "sparse_targets", "synthetic_header"]

VOCABULARY = 5000
RANK = 24
FRAMES_PER_SECOND = 25
TOKENS_PER_SECOND = 3.45
MEAN_SECONDS = 10.0

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class DenseUtterance:
    """Dense natural-log posteriors of one utterance, its reference and n-best."""

    id: str
    frames: Floats
    tokens: Floats
    reference: tuple[int, ...]
    nbest: tuple[StoredHypothesis, ...]


def synthetic_header(**changes: object) -> StoreHeader:
    """The header of a store of a synthetic teacher, default settings."""
    fields: dict[str, object] = {
        "teacher": TeacherIdentity("synthetic", "0" * 64),
        "tokenizer": TokenizerIdentity("0" * 64, VOCABULARY, 0, VOCABULARY - 1, VOCABULARY - 1),
        "feature_digest": "0" * 64,
        "cmvn_digest": "0" * 64,
        "subsampling": 4,
        "frame_shift_seconds": 1 / FRAMES_PER_SECOND,
        "manifest_digest": "0" * 64,
        "split": "train",
        "decode": {"beam": 10, "ctc_weight": 0.3},
        "nbest": 10,
    }
    return StoreHeader(**{**fields, **changes})  # type: ignore[arg-type]


class SyntheticTeacher:
    """Draws utterances; number n is always the same."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.embedding = random.normal(0, 1, (RANK, VOCABULARY)).astype(np.float32)
        ranks = random.permutation(VOCABULARY) + 1
        self.bias = (-0.9 * np.log(ranks)).astype(np.float32)
        self.unigram = np.exp(self.bias) / np.exp(self.bias).sum(dtype=np.float64)
        self.unigram[[0, 1, VOCABULARY - 1]] = 0
        self.unigram /= self.unigram.sum()

    def utterance(self, number: int) -> DenseUtterance:
        """Dense posteriors of utterance `number`."""
        random = np.random.default_rng((1, number))
        seconds = float(np.clip(random.gamma(4.0, MEAN_SECONDS / 4.0), 1.0, 30.0))
        length = max(1, round(seconds * TOKENS_PER_SECOND))
        reference = random.choice(VOCABULARY, length, p=self.unigram)
        frames = self._frames(random, int(seconds * FRAMES_PER_SECOND), reference)
        tokens = self._tokens(random, np.append(reference, VOCABULARY - 1))
        nbest = _nbest(random, reference, tokens)
        names = tuple(int(token) for token in reference)
        return DenseUtterance(f"synthetic-{number:06d}", frames, tokens, names, nbest)

    def _classes(
        self, random: np.random.Generator, targets: NDArray[np.int64], margin: Floats
    ) -> Floats:
        """Log-softmax of low-rank logits with `margin` added at each row's target."""
        state = random.normal(0, 1, (len(targets), RANK)).astype(np.float32)
        logits = 0.45 * (state @ self.embedding) + self.bias
        rows = np.arange(len(targets))
        logits[rows, targets] = logits.max(axis=1) + margin
        logits -= logits.max(axis=1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return logits

    def _tokens(self, random: np.random.Generator, targets: NDArray[np.int64]) -> Floats:
        role = random.random(len(targets))
        mean = np.select([role < 0.82, role < 0.98], [8.5, 4.7], 2.2)
        margin = random.normal(mean, 1.5).astype(np.float32)
        return self._classes(random, targets, margin)

    def _frames(
        self, random: np.random.Generator, count: int, reference: NDArray[np.int64]
    ) -> Floats:
        places = np.sort(random.choice(count, min(len(reference), count), replace=False))
        nearest = np.abs(np.arange(count)[:, None] - places).argmin(axis=1)
        margin = random.normal(6.8, 2.0, count).astype(np.float32)
        log_probs = self._classes(random, reference[nearest], margin)
        distance = np.abs(np.arange(count) - places[nearest])
        between = (distance == 1) & (random.random(count) < 0.46)
        mean = np.select([distance == 0, between], [-5.0, 2.5], 8.2)
        odds = random.normal(mean, np.where(between, 3.0, 1.6)).astype(np.float32)
        log_probs += -np.logaddexp(0, odds)[:, None]
        log_probs[:, 0] = -np.logaddexp(0, -odds)
        log_probs -= np.log(np.exp(log_probs).sum(axis=1, keepdims=True))
        return log_probs


def _nbest(
    random: np.random.Generator, reference: NDArray[np.int64], tokens: Floats
) -> tuple[StoredHypothesis, ...]:
    """The reference and nine of one to three edits of it, towards likely classes."""
    scores = -np.cumsum(random.gamma(1.0, 0.8, 10)) - 0.1 * len(reference)
    posterior = np.exp(scores - scores.max())
    posterior /= posterior.sum()
    likely = np.argpartition(-tokens, 5, axis=1)[:, :5]
    nbest = []
    for rank in range(10):
        hypothesis = [int(token) for token in reference]
        for _ in range(0 if rank == 0 else int(random.integers(1, 4))):
            place = int(random.integers(0, len(hypothesis)))
            replaced = [int(likely[min(place, len(likely) - 1), random.integers(0, 5)])]
            edit = int(random.integers(0, 6))
            hypothesis[place : place + (edit != 0)] = [] if edit == 1 else replaced
            hypothesis = hypothesis or replaced
        attention, ctc = scores[rank] * 0.8, scores[rank] * 1.4
        numbers = np.asarray([attention, ctc, scores[rank], posterior[rank]], np.float32)
        nbest.append(StoredHypothesis(tuple(hypothesis), *numbers.tolist()))
    return tuple(nbest)


def sparse_targets(dense: DenseUtterance, header: StoreHeader) -> UtteranceTargets:
    """What the teacher would give the store at the header's settings."""
    return UtteranceTargets(
        dense.id,
        sparsify(dense.frames, header.top_k, header.min_prob),
        sparsify(dense.tokens, header.top_k, header.min_prob),
        dense.reference,
        dense.nbest,
    )
