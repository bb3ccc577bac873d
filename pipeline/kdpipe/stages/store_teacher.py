"""What checking a store needs the teacher for: recomputing a sample, and repairing damage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdpipe.batching import collate
from kdpipe.checkpoint import ModelBundle, load_model, weights_digest
from kdpipe.errors import MismatchError
from kdpipe.features.prepared import PreparedData, PreparedSplit
from kdpipe.progress import progress
from kdpipe.stages.device import pick_device
from kdpipe.stages.teacher_dump import DumpSettings, Shard, teacher_dump, teacher_targets
from kdpipe.store import StoreHeader, TeacherStore, kl_to_stored, open_store
from kdpipe.store.repair import drop_utterances

__all__ = ["Recomputed", "dump_settings", "recompute_sample", "repair_store"]


@dataclass(frozen=True)
class Recomputed:
    """How a store's targets compare with what the teacher says now.

    `frame_kl` and `token_kl` are mean KL(teacher || store) in nats a row, `best_agrees` the
    fraction of utterances whose first hypothesis is the same, `worst` the utterance with the
    largest KL.
    """

    utterances: int
    frame_kl: float
    token_kl: float
    best_agrees: float
    worst: str

    def within(self, threshold: float) -> bool:
        """Whether both mean divergences are at most `threshold` nats."""
        return max(self.frame_kl, self.token_kl) <= threshold

    def to_json(self) -> Mapping[str, object]:
        """The fields as plain JSON types."""
        return dict(vars(self))


def recompute_sample(
    store: Path, data: Path, teacher: Path, size: int, seed: int, device: str
) -> Recomputed:
    """Run the teacher again on `size` random utterances of a store and compare.

    Raises `MismatchError` where the teacher is not the store's, or the data is not what the
    store was made from.
    """
    opened = open_store(store, allow_partial=True)
    bundle = load_model(teacher, pick_device(device))
    split = _split_of(opened.header, PreparedData.open(data), bundle)
    ids = list(opened)
    chosen = np.random.default_rng(seed).permutation(len(ids))[:size]
    rows = [
        _compare(opened, bundle, split, ids[i])
        for i in progress(chosen.tolist(), len(chosen), "recompute")
    ]
    table = np.array([row[:5] for row in rows], dtype=np.float64).reshape(-1, 5)
    sums = table.sum(axis=0)
    worst = int(table[:, 4].argmax()) if len(rows) else -1
    return Recomputed(
        utterances=len(rows),
        frame_kl=float(sums[0] / max(1.0, sums[1])),
        token_kl=float(sums[2] / max(1.0, sums[3])),
        best_agrees=float(np.mean([row[5] for row in rows])) if rows else 1.0,
        worst=ids[int(chosen[worst])] if rows else "",
    )


def repair_store(store: Path, data: Path, teacher: Path, device: str) -> list[str]:
    """Drop the damaged utterances of a store and dump just those again; returns their ids.

    Raises `MismatchError` for another teacher or other data, `StoreDamageError` where header or
    index are beyond use.
    """
    header = open_store(store, allow_partial=True).header
    bundle = load_model(teacher, pick_device(device))
    _split_of(header, PreparedData.open(data), bundle)
    dropped = drop_utterances(store)
    teacher_dump(
        data, header.split, teacher, store, dump_settings(header), Shard(), device,
        licence=header.licence,
    )  # fmt: skip
    return dropped


def dump_settings(header: StoreHeader) -> DumpSettings:
    """The settings that a store was dumped with."""
    return DumpSettings(
        top_k=header.top_k,
        min_prob=header.min_prob,
        codec=header.codec,
        nbest=header.nbest,
        beam=int(header.decode["beam"]),
        ctc_weight=float(header.decode["ctc_weight"]),
        batch_frames=int(header.decode["batch_frames"]),
    )


def _split_of(header: StoreHeader, prepared: PreparedData, bundle: ModelBundle) -> PreparedSplit:
    """The split a store was made from, if teacher and data are the store's."""
    split = prepared.split(header.split)
    pairs = {
        "the teacher's weights": (weights_digest(bundle.path), header.teacher.sha256),
        "the features": (prepared.feature_digest, header.feature_digest),
        "the manifest": (split.manifest_digest, header.manifest_digest),
    }
    for what, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise MismatchError(
                what, ours[:16], theirs[:16], "Give the teacher and data the store was made from"
            )
    return split


def _compare(
    store: TeacherStore, bundle: ModelBundle, split: PreparedSplit, identifier: str
) -> tuple[float, int, float, int, float, bool]:
    """KL sums and rows of frames and tokens, the larger mean, and whether the 1-best agrees."""
    batch = collate(split, bundle.cmvn, [split.index(identifier)])
    batch = batch.to(next(bundle.model.parameters()).device)
    ((fresh, dense),) = teacher_targets(bundle, batch, dump_settings(store.header))
    stored = store[identifier]
    frames = kl_to_stored(dense[0], stored.frames)
    tokens = kl_to_stored(dense[1], stored.tokens)
    means = [float(kl.mean()) for kl in (frames, tokens) if len(kl)]
    best = [tuple(t.nbest[0].tokens) if t.nbest else () for t in (fresh, stored)]
    return (
        float(frames.sum()), len(frames), float(tokens.sum()), len(tokens),
        max(means, default=0.0), best[0] == best[1],
    )  # fmt: skip
