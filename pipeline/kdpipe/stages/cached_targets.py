"""Targets read from teacher stores, checked against the data before training starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdpipe.batching import Batch
from kdpipe.checkpoint import Lineage
from kdpipe.errors import MismatchError
from kdpipe.features.prepared import PreparedData, PreparedSplit
from kdpipe.losses import SparseRows
from kdpipe.models import SUBSAMPLING, subsampled_lengths
from kdpipe.stages.targets import NbestBatch, Targets, TargetSource
from kdpipe.store import RaggedNbest, RaggedRows, TeacherStore, open_store
from kdpipe.store.compatible import check_compatible
from kdpipe.text.tokenizer import Tokenizer

__all__ = ["cached_targets", "check_store", "open_targets", "store_lineage"]

JOINT = 2
"""Column of the joint score in a store's scores: attention, ctc, joint, posterior."""
REDUMP = "Run teacher-dump again on this data, or train on the data the store was made from"
AT_ONCE = 256


def open_targets(
    store: str, prepared: PreparedData, tokenizer: Tokenizer, allow_partial: bool
) -> TeacherStore:
    """The store at `store`, checked against the train split.

    With `allow_partial` a store that is still being written may lack utterances. Raises
    `MismatchError` naming both sides when the store was made with another tokenizer, subsampling
    or features, lacks utterances, or has other frame counts or references.
    """
    opened = open_store(store, allow_partial)
    check_store(opened, prepared, prepared.split("train"), tokenizer)
    return opened


def store_lineage(store: TeacherStore) -> Lineage:
    """What a student says of the store it learned from."""
    teacher = store.header.teacher
    digest = store.digest or f"partial, {len(store):,} utterances, {_partial_digest(store)}"
    return Lineage(digest, teacher.name, teacher.sha256)


def _partial_digest(store: TeacherStore) -> str:
    """Tells two unfinished stores apart: by teacher and settings, and by what they hold."""
    told = [store.header.identity(), sorted(store.ids)]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


def check_store(
    store: TeacherStore, prepared: PreparedData, split: PreparedSplit, tokenizer: Tokenizer
) -> None:
    """Refuse a store whose targets would not fit the student's frames and tokens.

    A store of n-best lists alone fits any features: only the tokens must be the same. One under
    construction, which is opened only where that is wanted, needs some of the utterances.
    """
    posteriors = {"frames", "tokens"} & set(store.header.streams)
    check_compatible(
        store.header,
        tokenizer.fingerprint,
        tokenizer.vocab_size,
        SUBSAMPLING if posteriors else None,
        prepared.feature_digest if posteriors else None,
    )
    ids = list(split.ids)
    missing = set(store.missing(ids))
    if len(missing) == len(ids) or (missing and store.complete):
        first = [name for name in ids if name in missing][:3]
        raise MismatchError(
            f"the set of utterances ({store.path} lacks {len(missing)}, first {', '.join(first)})",
            len(ids), len(ids) - len(missing), REDUMP,
        )  # fmt: skip
    places = [place for place, name in enumerate(ids) if name not in missing]
    held = [ids[place] for place in places]
    _check_lengths(store, held, split.frame_counts[places], split.token_counts[places])
    if "tokens" in store.header.streams and store.header.manifest_digest != split.manifest_digest:
        _check_references(store, held, split, places)


def _check_lengths(
    store: TeacherStore,
    ids: Sequence[str],
    frame_counts: NDArray[np.int64],
    tokens: NDArray[np.int64],
) -> None:
    """Frames and token rows of every utterance, without reading a single target.

    The teacher may have given an unlabelled utterance any number of token rows.
    """
    frames = subsampled_lengths(torch.from_numpy(frame_counts)).numpy()
    found = store.lengths(ids)
    rows = np.where(tokens > 0, tokens + 1, found[:, 1])
    held = [name in store.header.streams for name in ("frames", "tokens")]
    expected = np.stack([frames, rows], axis=1) * np.array(held)
    wrong = np.flatnonzero((expected != found).any(axis=1))
    if len(wrong):
        first = int(wrong[0])
        raise MismatchError(
            f"frames and token rows of {len(wrong)} utterances (first {ids[first]})",
            tuple(expected[first].tolist()), tuple(found[first].tolist()), REDUMP,
        )  # fmt: skip


def _check_references(
    store: TeacherStore, ids: Sequence[str], split: PreparedSplit, places: Sequence[int]
) -> None:
    """The decoder's posteriors are of the text that the teacher was given: it must be this one.

    The teacher gave unlabelled utterances their texts, and these have no tokens here.
    """
    for start in range(0, len(ids), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        batch = store.read_batch(ids[part])
        stored = np.split(batch.references, batch.reference_offsets[1:-1])
        tokens = [split.tokens(place) for place in places[part]]
        for name, ours, theirs in zip(ids[part], tokens, stored, strict=True):
            if ours and ours != tuple(theirs.tolist()):
                raise MismatchError(
                    f"the reference tokens of {name}", list(ours), theirs.tolist(), REDUMP
                )


def cached_targets(store: TeacherStore, nbest: int, device: torch.device) -> TargetSource:
    """A source that reads each batch's targets by utterance id."""

    def targets(batch: Batch, sequences: bool) -> Targets:
        found = store.read_batch(batch.ids)
        return Targets(
            _rows(found.frames, device),
            _rows(found.tokens, device),
            _nbest(found.nbest, nbest, device) if sequences else None,
        )

    return targets


def _rows(rows: RaggedRows, device: torch.device) -> SparseRows:
    return SparseRows(
        torch.from_numpy(rows.counts.astype(np.int64)).to(device),
        torch.from_numpy(rows.ids.astype(np.int64)).to(device),
        torch.from_numpy(rows.log_probs).to(device),
        torch.from_numpy(rows.tail).to(device),
    )


def _nbest(lists: RaggedNbest, nbest: int, device: torch.device) -> NbestBatch:
    """Pad the first `nbest` hypotheses of every utterance to (B, N, L)."""
    counts = np.minimum(np.diff(lists.offsets), nbest)
    places = np.arange(max(1, int(counts.max(initial=0))))
    present = places < counts[:, None]
    which = np.where(present, lists.offsets[:-1, None] + places, -1)
    lengths = _take(np.diff(lists.token_offsets), which)
    positions = np.arange(max(1, int(lengths.max(initial=0))))
    inside = positions < lengths[..., None]
    source = np.where(inside, _take(lists.token_offsets[:-1], which)[..., None] + positions, -1)
    scores = _take(lists.scores[:, JOINT], which)
    return NbestBatch(
        torch.from_numpy(_take(lists.tokens, source).astype(np.int64)).to(device),
        torch.from_numpy(lengths).to(device),
        torch.from_numpy(scores.astype(np.float32)).to(device),
        torch.from_numpy(present).to(device),
    )


def _take(values: NDArray[Any], index: NDArray[np.int64]) -> NDArray[Any]:
    """`values[index]`, and 0 where `index` is -1."""
    padded = np.append(values, np.zeros(1, values.dtype))
    taken: NDArray[Any] = padded[index]
    return taken
