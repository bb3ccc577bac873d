"""How two stores differ: coverage, settings, and what their teachers say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.store.pairs import kl_between
from kdpipe.store.ragged import RaggedBatch, RaggedRows
from kdpipe.store.reader import TeacherStore, open_store

__all__ = ["compare_stores"]

BATCH = 64
NAMED = 20
Advance = Callable[[int], object]


def compare_stores(
    first: Path | str, second: Path | str, advance: Advance = lambda utterances: None
) -> dict[str, Any]:
    """Compare two stores, as plain JSON types.

    `settings` lists header fields that differ, both sides. Over the utterances that both hold
    with as many frames and tokens: mean `frame_kl` and `token_kl` (first || second, nats a row),
    how often their likeliest class agrees by row, and their first hypothesis by utterance. With
    different vocabularies nothing of that is compared.
    """
    ours, theirs = open_store(first, allow_partial=True), open_store(second, allow_partial=True)
    common = [utterance for utterance in ours if utterance in theirs]
    only = [utterance for utterance in ours if utterance not in theirs]
    others = [utterance for utterance in theirs if utterance not in ours]
    before, after = ours.header.settings(), theirs.header.settings()
    changed = {key: [before[key], after[key]] for key in before if before[key] != after[key]}
    report: dict[str, Any] = {
        "same_content": ours.digest is not None and ours.digest == theirs.digest,
        "settings": changed,
        "utterances": [len(ours), len(theirs)],
        "common": len(common),
        "only_first": len(only),
        "only_second": len(others),
        "examples_only_first": only[:NAMED],
        "examples_only_second": others[:NAMED],
    }
    if "tokenizer" not in changed:
        report.update(_compare_content(ours, theirs, common, advance))
    return report


def _compare_content(
    ours: TeacherStore, theirs: TeacherStore, common: list[str], advance: Advance
) -> dict[str, Any]:
    sums = np.zeros(8)
    unlike = 0
    for start in range(0, len(common), BATCH):
        ids = common[start : start + BATCH]
        alike = (ours.lengths(ids) == theirs.lengths(ids)).all(axis=1)
        chosen = [utterance for utterance, same in zip(ids, alike, strict=True) if same]
        unlike += len(ids) - len(chosen)
        sums += _compare_batch(ours.read_batch(chosen), theirs.read_batch(chosen), ours)
        advance(len(ids))
    frames, frame_kl, frame_best, tokens, token_kl, token_best, utterances, best = sums.tolist()
    return {
        "of_other_length": unlike,
        "compared": int(utterances),
        "frame_kl": frame_kl / max(frames, 1),
        "frame_agreement": frame_best / max(frames, 1),
        "token_kl": token_kl / max(tokens, 1),
        "token_agreement": token_best / max(tokens, 1),
        "one_best_agreement": best / max(utterances, 1),
    }


def _compare_batch(ours: RaggedBatch, theirs: RaggedBatch, store: TeacherStore) -> Any:
    vocab_size = store.header.tokenizer.vocab_size
    same = sum(_first(ours, b) == _first(theirs, b) for b in range(len(ours)))
    frames = _compare_rows(ours.frames, theirs.frames, vocab_size)
    tokens = _compare_rows(ours.tokens, theirs.tokens, vocab_size)
    return np.asarray([*frames, *tokens, len(ours), same], np.float64)


def _compare_rows(ours: RaggedRows, theirs: RaggedRows, vocab_size: int) -> tuple[int, float, int]:
    """Rows, their KL summed, and in how many the likeliest class is the same."""
    if not len(ours.counts):
        return 0, 0.0, 0
    divergence = kl_between(ours.posterior(), theirs.posterior(), vocab_size).sum()
    agreeing = int((_likeliest(ours) == _likeliest(theirs)).sum())
    return len(ours.counts), float(divergence), agreeing


def _likeliest(rows: RaggedRows) -> NDArray[np.int32]:
    return rows.ids[np.cumsum(rows.counts, dtype=np.int64) - rows.counts]


def _first(batch: RaggedBatch, position: int) -> list[int] | None:
    start, end = batch.nbest.offsets[position : position + 2].tolist()
    if start == end:
        return None
    begin, finish = batch.nbest.token_offsets[start : start + 2].tolist()
    tokens: list[int] = batch.nbest.tokens[begin:finish].tolist()
    return tokens
