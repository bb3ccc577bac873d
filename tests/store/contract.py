"""Made-up targets, and what every backend must do with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdpipe.store import StoreWriter
from kdpipe.store.encode import EMPTY_POSTERIOR, sparsify
from kdpipe.store.schema import (
    StoredHypothesis,
    StoreHeader,
    TeacherIdentity,
    TokenizerIdentity,
    UtteranceTargets,
)

VOCABULARY = 60


def make_header(**changes: object) -> StoreHeader:
    """A header over a small vocabulary."""
    vocab_size = int(str(changes.pop("vocab_size", VOCABULARY)))
    fields: dict[str, object] = {
        "teacher": TeacherIdentity("conformer", "ab" * 32),
        "tokenizer": TokenizerIdentity("cd" * 16, vocab_size, 0, vocab_size - 1, vocab_size - 1),
        "feature_digest": "ef" * 32,
        "cmvn_digest": "01" * 32,
        "subsampling": 4,
        "frame_shift_seconds": 0.04,
        "manifest_digest": "23" * 32,
        "split": "train",
        "decode": {"beam": 10, "ctc_weight": 0.3},
        "nbest": 10,
        "kdpipe_version": "0",
        "created": "2024-01-01T00:00:00+00:00",
    }
    return StoreHeader(**{**fields, **changes})  # type: ignore[arg-type]


def dense_log_probs(
    random: np.random.Generator, rows: int, vocab_size: int = VOCABULARY, blank: bool = False
) -> NDArray[np.float32]:
    """Peaked distributions (rows, vocab_size); with `blank`, class 0 wins most rows."""
    logits = random.normal(0, 3, (rows, vocab_size))
    if blank:
        logits[:, 0] += random.normal(8, 5, rows)
    log_norm = np.log(np.exp(logits).sum(axis=1, keepdims=True))
    normalised: NDArray[np.float32] = (logits - log_norm).astype(np.float32)
    return normalised


def make_targets(seed: int, header: StoreHeader, prefix: str = "utt") -> UtteranceTargets:
    """The targets of made-up utterance number `seed`: always the same."""
    random = np.random.default_rng(seed)
    vocab = header.tokenizer.vocab_size
    frames = sparsify(
        dense_log_probs(random, int(random.integers(1, 40)), vocab, blank=True),
        header.top_k,
        header.min_prob,
    )
    reference = tuple(random.integers(2, vocab - 1, int(random.integers(0, 12))).tolist())
    tokens = sparsify(
        dense_log_probs(random, len(reference) + 1, vocab), header.top_k, header.min_prob
    )
    if seed % 11 == 7:
        reference, tokens = (), EMPTY_POSTERIOR
    return UtteranceTargets(
        f"{prefix}-{seed:05d}", frames, tokens, reference, make_nbest(random, reference, header)
    )


def make_nbest(
    random: np.random.Generator, reference: tuple[int, ...], header: StoreHeader
) -> tuple[StoredHypothesis, ...]:
    """Hypotheses with a few edits each of the reference."""
    scores = -np.sort(random.gamma(2.0, 2.0, header.nbest)).astype(np.float32)
    posterior = (np.exp(scores) / np.exp(scores).sum()).astype(np.float32)
    hypotheses = []
    for score, share in zip(scores.tolist(), posterior.tolist(), strict=True):
        tokens = list(reference)
        for _ in range(int(random.integers(0, 3))):
            place = int(random.integers(0, len(tokens) + 1))
            tokens[place : place + int(random.integers(0, 2))] = [int(random.integers(2, 50))]
        hypotheses.append(
            StoredHypothesis(tuple(tokens), score, float(np.float32(score * 1.5)), score, share)
        )
    return tuple(hypotheses)


def write_targets(path: Path, header: StoreHeader, seeds: range, **options: int) -> None:
    """Write made-up utterances with one writer, without finishing."""
    with StoreWriter(path, header, **options) as writer:  # type: ignore[arg-type]
        for seed in seeds:
            writer.add(make_targets(seed, header))


def assert_same_targets(
    actual: UtteranceTargets, expected: UtteranceTargets, tolerance: float
) -> None:
    """Equal but for log-probabilities, which may be off by `tolerance` nats."""
    assert (actual.id, actual.reference) == (expected.id, expected.reference)
    assert (actual.nbest, actual.status) == (expected.nbest, expected.status)
    for ours, theirs in ((actual.frames, expected.frames), (actual.tokens, expected.tokens)):
        np.testing.assert_array_equal(ours.counts, theirs.counts)
        np.testing.assert_array_equal(ours.ids, theirs.ids)
        np.testing.assert_allclose(ours.log_probs, theirs.log_probs, atol=tolerance, rtol=0)
        np.testing.assert_allclose(ours.tail, theirs.tail, rtol=1e-2, atol=1e-6)
