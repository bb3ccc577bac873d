"""Unlabelled utterances in training: the teacher's first hypothesis is their label.

The confidence of a pseudo-label is exp(joint score / (tokens + 1)), the geometric mean of the
teacher's probability of a token, end of sentence included: the length-normalised log-likelihood by
which Kahn et al. (Self-training for end-to-end speech recognition, 2020) filter. Unlike P' of Eq. 9
it does not fall with the length of the utterance or depend on the size of the N-best.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kdpipe.batching import BatchSource
from kdpipe.errors import ConfigError, DataError
from kdpipe.features.prepared import PreparedSplit, PreparedUtterance
from kdpipe.models import subsampled_lengths
from kdpipe.stages.nbest_targets import is_alignable
from kdpipe.store import TeacherStore, UtteranceTargets
from kdpipe.store.merge import AVERAGE_DEFINITIONS
from kdpipe.store.ragged import utterance_targets

__all__ = [
    "Labels",
    "LearnedSplit",
    "LeftOut",
    "confidence",
    "learned_source",
    "require_texts",
    "take_labels",
]

AT_ONCE = 256
NOT_IN_STORE = "not-in-store"


@dataclass(frozen=True)
class LeftOut:
    """An utterance that is not learned.

    The reason is the status of an unlabelled one or `low-confidence`, or `not-in-store` where the
    store is still being written.
    """

    id: str
    reason: str
    confidence: float | None


@dataclass(frozen=True)
class Labels:
    """Pseudo-labels by position in the split, and the utterances left out.

    absent: positions that the store has no targets for yet.
    """

    tokens: Mapping[int, tuple[int, ...]]
    left_out: tuple[LeftOut, ...]
    absent: frozenset[int] = frozenset()

    def summary(self) -> str:
        """How many are used, and how many left out for each reason."""
        reasons = Counter(entry.reason for entry in self.left_out)
        listed = "".join(f", {reason} {count:,}" for reason, count in sorted(reasons.items()))
        used = f"pseudo-labels: {len(self.tokens):,} used, "
        if not self.tokens and set(reasons) == {NOT_IN_STORE}:
            used = ""
        return f"{used}{len(self.left_out):,} left out{listed}"


class LearnedSplit:
    """The utterances of a split that are learned, pseudo-labels as their tokens."""

    def __init__(self, split: PreparedSplit, labels: Labels) -> None:
        unlabelled = set(np.flatnonzero(split.token_counts == 0).tolist())
        dropped = (unlabelled - set(labels.tokens)) | labels.absent
        self._split = split
        self._labels = labels
        self._kept = np.array([i for i in range(len(split)) if i not in dropped], dtype=np.int64)

    @property
    def frame_counts(self) -> NDArray[np.int64]:
        """(N,) feature frames of every utterance."""
        counts: NDArray[np.int64] = self._split.frame_counts[self._kept]
        return counts

    @property
    def feature_dim(self) -> int:
        """F, values a frame."""
        return self._split.feature_dim

    def utterance(self, index: int) -> PreparedUtterance:
        """One utterance; a pseudo-labelled one has tokens, and no text as before."""
        place = int(self._kept[index])
        found = self._split.utterance(place)
        label = self._labels.tokens.get(place)
        return found if label is None else replace(found, tokens=label)

    def features(self, index: int) -> NDArray[np.float16]:
        """(T, F) features of one utterance, CMVN not applied."""
        return self._split.features(int(self._kept[index]))


def take_labels(split: PreparedSplit, store: TeacherStore, min_confidence: float) -> Labels:
    """The store's first hypotheses as labels of the unlabelled utterances of `split`.

    Utterances whose label is less confident than `min_confidence` or longer than CTC can align
    with this split's frames, or that have none, are left out; so are those that an unfinished
    store lacks. Raises `DataError` where nothing is left to learn, `ConfigError` for a
    `min_confidence` of an averaged store, whose scores say nothing of a token.
    """
    if min_confidence and store.header.score_definitions == AVERAGE_DEFINITIONS:
        raise ConfigError(
            "distillation", "min_confidence", min_confidence,
            "the scores of an averaged store are no probabilities of tokens",
            "Leave it at 0, or take the store of one teacher",
        )  # fmt: skip
    ids = list(split.ids)
    missing = set() if store.complete else set(store.missing(ids))
    absent = frozenset(place for place, name in enumerate(ids) if name in missing)
    tokens: dict[int, tuple[int, ...]] = {}
    left_out = [LeftOut(ids[place], NOT_IN_STORE, None) for place in sorted(absent)]
    for place, targets in _unlabelled(split, store, ids, absent):
        label, sure = _label(targets), confidence(targets)
        if targets.status != "pseudo":
            left_out.append(LeftOut(targets.id, targets.status, None))
        elif sure < min_confidence:
            left_out.append(LeftOut(targets.id, "low-confidence", sure))
        elif not is_alignable(label, subsampled_lengths(int(split.frame_counts[place]))):
            left_out.append(LeftOut(targets.id, "unalignable", sure))
        else:
            tokens[place] = label
    if len(left_out) == len(split):
        raise DataError(
            split.folder.name,
            f"no utterance has a text or a pseudo-label of confidence {min_confidence:g} or more",
            "Lower distillation.min_confidence, or take a better teacher",
        )
    return Labels(tokens, tuple(left_out), absent)


def confidence(targets: UtteranceTargets) -> float:
    """exp(joint score / (tokens + 1)) of the hypothesis that is the label; 0 without one."""
    label = _label(targets)
    scores = [h.joint for h in targets.nbest if h.tokens == label]
    return math.exp(scores[0] / (len(label) + 1)) if scores else 0.0


def require_texts(split: PreparedSplit, remedy: str) -> None:
    """Raise `DataError` where an utterance of `split` has no text to learn from."""
    count = int((split.token_counts == 0).sum())
    if count:
        raise DataError(split.folder.name, f"{count:,} of {len(split):,} have no text", remedy)


def learned_source(split: PreparedSplit, labels: Labels) -> BatchSource:
    """What is learned of `split`: all of it, where every utterance has its text."""
    return LearnedSplit(split, labels) if labels.tokens or labels.left_out else split


def _label(targets: UtteranceTargets) -> tuple[int, ...]:
    """The reference, or where the store has none, what would have been it."""
    if targets.reference or not targets.nbest:
        return targets.reference
    return targets.nbest[0].tokens


def _unlabelled(
    split: PreparedSplit, store: TeacherStore, ids: Sequence[str], absent: frozenset[int]
) -> Iterator[tuple[int, UtteranceTargets]]:
    every: list[int] = np.flatnonzero(split.token_counts == 0).tolist()
    places = [place for place in every if place not in absent]
    for start in range(0, len(places), AT_ONCE):
        chosen = places[start : start + AT_ONCE]
        batch = store.read_batch([ids[place] for place in chosen])
        for position, place in enumerate(chosen):
            yield place, utterance_targets(batch, position)
