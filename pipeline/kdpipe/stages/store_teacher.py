"""What checking a store needs the teacher for: recomputing a sample, and repairing damage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np

from kdpipe.batching import Batch, collate, pad_tokens
from kdpipe.checkpoint import load_model
from kdpipe.errors import MismatchError, StoreFormatError
from kdpipe.features.prepared import PreparedData
from kdpipe.progress import progress
from kdpipe.stages.device import pick_device
from kdpipe.stages.own_teacher import teacher_targets
from kdpipe.stages.speaker import DumpSettings, Speaker
from kdpipe.stages.teacher_dump import Shard, open_speaker, teacher_dump
from kdpipe.store import StoreHeader, UtteranceTargets, kl_to_stored, open_store
from kdpipe.store.repair import complete_swap, drop_utterances, salvaged_header
from kdpipe.text.normalise import TextCase
from kdpipe.text.spoken import Punctuation

__all__ = ["Recomputed", "dump_settings", "recompute_sample", "repair_store"]

MOST_BEAM = 1000
"""Of teacher-dump's `--beam`; a header that asks for more would only exhaust the memory."""
JOINED = "Verify or repair each of the stores that it was joined from, then join them again"


@dataclass(frozen=True)
class Recomputed:
    """How a store's targets compare with what the teacher says now.

    `frame_kl` and `token_kl` are mean KL(teacher || store) in nats a row, `best_agrees` the
    fraction of utterances whose first hypothesis is the same, `worst` the utterance with the
    largest KL. `nbest_distance` is for stores of n-best lists alone (else 0): the mean total
    variation, half the sum of |P' now - P' stored| over the hypotheses of either.
    """

    utterances: int
    frame_kl: float
    token_kl: float
    nbest_distance: float
    best_agrees: float
    worst: str

    def within(self, threshold: float) -> bool:
        """Whether all mean divergences are at most `threshold`."""
        return max(self.frame_kl, self.token_kl, self.nbest_distance) <= threshold

    def to_json(self) -> Mapping[str, object]:
        """The fields as plain JSON types."""
        return dict(vars(self))


@dataclass(frozen=True)
class _Comparison:
    """One utterance: KL sums and rows of frames and tokens, distance, the largest of the means."""

    frame_kl: float = 0.0
    frames: int = 0
    token_kl: float = 0.0
    tokens: int = 0
    nbest_distance: float = 0.0
    worst: float = 0.0
    best_agrees: bool = True


def recompute_sample(
    store: Path, data: Path, teacher: Path, size: int, seed: int, device: str
) -> Recomputed:
    """Run the teacher again on `size` random utterances of a store and compare.

    A pseudo-labelled utterance is compared on the label in the store. Raises `MismatchError`
    where the teacher is not the store's, the store is a merge of several, or the data is not
    what the store was made from.
    """
    opened = open_store(store, allow_partial=True)
    prepared = PreparedData.open(data)
    compare = _comparer(opened.header, teacher, prepared, device)
    ids = list(opened)
    chosen = np.random.default_rng(seed).permutation(len(ids))[:size].tolist()
    rows = [compare(opened[ids[i]]) for i in progress(chosen, len(chosen), "recompute")]
    worst = int(np.argmax([row.worst for row in rows])) if rows else -1
    return Recomputed(
        utterances=len(rows),
        frame_kl=sum(row.frame_kl for row in rows) / max(1, sum(row.frames for row in rows)),
        token_kl=sum(row.token_kl for row in rows) / max(1, sum(row.tokens for row in rows)),
        nbest_distance=sum(row.nbest_distance for row in rows) / max(1, len(rows)),
        best_agrees=float(np.mean([row.best_agrees for row in rows])) if rows else 1.0,
        worst=ids[chosen[worst]] if rows else "",
    )


def repair_store(store: Path, data: Path, teacher: Path, device: str) -> list[str]:
    """Drop the damaged utterances of a store and dump just those again; returns their ids.

    Goes on with a repair that was broken off. Raises `MismatchError` for another teacher, a merge
    of several stores or other data, `StoreDamageError` where header or index are beyond use.
    """
    complete_swap(store)
    header = salvaged_header(store)
    _same_speaker(header, teacher, PreparedData.open(data), device)
    dropped = drop_utterances(store)
    teacher_dump(
        data, header.split, teacher, store, dump_settings(header), Shard(), device,
        licence=header.licence,
    )  # fmt: skip
    return dropped


def dump_settings(header: StoreHeader) -> DumpSettings:
    """The settings that a store was dumped with.

    Raises `StoreFormatError` where the header's `decode`, free JSON to every other reader, does
    not say how to dump again.
    """
    plain, decode = DumpSettings(), header.decode
    try:
        settings = DumpSettings(
            top_k=header.top_k,
            min_prob=header.min_prob,
            codec=header.codec,
            nbest=header.nbest,
            beam=int(decode["beam"]),
            ctc_weight=float(decode.get("ctc_weight", plain.ctc_weight)),
            batch_frames=int(decode["batch_frames"]),
            text_case=decode.get("text_case", plain.text_case),
            punctuation=decode.get("punctuation", plain.punctuation),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _undecodable(header) from error
    if not _possible(settings):
        raise _undecodable(header)
    return settings


def _possible(settings: DumpSettings) -> bool:
    """Whether `kdpipe teacher-dump` could have been given these."""
    return (
        1 <= settings.beam <= MOST_BEAM
        and 0.0 <= settings.ctc_weight <= 1.0
        and settings.batch_frames >= 1
        and settings.text_case in ("auto", *get_args(TextCase))
        and settings.punctuation in get_args(Punctuation)
    )


def _undecodable(header: StoreHeader) -> StoreFormatError:
    return StoreFormatError(
        f"the store of {header.teacher.name}",
        "its header does not say how it was decoded",
        "Copy it again from where it was made, or dump it again",
    )


def _same_speaker(
    header: StoreHeader, teacher: Path, prepared: PreparedData, device: str
) -> Speaker:
    """The store's teacher in front of its split, if teacher and data are the store's."""
    # An average keeps the search settings of each of its teachers, by number.
    if "beam" not in header.decode:
        raise MismatchError(
            "the teacher", teacher.name, header.teacher.name,
            "Verify or repair each teacher's own store, then merge them again with --average",
        )  # fmt: skip
    # A joined store is of several splits, which the data holds one by one.
    if header.lineage and header.split not in prepared.splits:
        raise MismatchError("the split", ", ".join(prepared.splits), header.split, JOINED)
    speaker = open_speaker(teacher, prepared, header.split, dump_settings(header), device)
    ours = speaker.header
    pairs = {
        "the teacher's weights": (ours.teacher.sha256, header.teacher.sha256),
        "the features": (ours.feature_digest, header.feature_digest),
        "the manifest": (ours.manifest_digest, header.manifest_digest),
    }
    for what, (here, there) in pairs.items():
        if here != there:
            remedy = "Give the teacher and data the store was made from"
            if what == "the manifest" and header.lineage:
                remedy = JOINED
            raise MismatchError(what, here[:16], there[:16], remedy)
    return speaker


def _comparer(
    header: StoreHeader, teacher: Path, prepared: PreparedData, device: str
) -> Callable[[UtteranceTargets], _Comparison]:
    """How one utterance's stored targets are compared with the teacher's."""
    speaker = _same_speaker(header, teacher, prepared, device)
    split = prepared.split(header.split)
    if "frames" not in header.streams:

        def compare_nbest(stored: UtteranceTargets) -> _Comparison:
            ((spoken,),) = (list(batch) for batch in speaker.speak([[split.index(stored.id)]]))
            return _compare_nbest(spoken[0], stored)

        return compare_nbest
    bundle = load_model(teacher, pick_device(device))
    where = next(bundle.model.parameters()).device

    def compare(stored: UtteranceTargets) -> _Comparison:
        batch = collate(split, bundle.cmvn, [split.index(stored.id)])
        if stored.status == "pseudo":
            batch = _labelled(batch, stored.reference)
        ((fresh, dense),) = teacher_targets(bundle, batch.to(where), dump_settings(header))
        frames = kl_to_stored(dense[0], stored.frames)
        tokens = kl_to_stored(dense[1], stored.tokens)
        means = [float(kl.mean()) for kl in (frames, tokens) if len(kl)]
        return _Comparison(
            frame_kl=float(frames.sum()),
            frames=len(frames),
            token_kl=float(tokens.sum()),
            tokens=len(tokens),
            worst=max(means, default=0.0),
            best_agrees=_best(fresh) == _best(stored),
        )

    return compare


def _labelled(batch: Batch, reference: tuple[int, ...]) -> Batch:
    """A batch of one with `reference` as its tokens."""
    tokens, lengths = pad_tokens([reference])
    return replace(batch, tokens=tokens, token_lengths=lengths)


def _compare_nbest(fresh: UtteranceTargets, stored: UtteranceTargets) -> _Comparison:
    now, then = ({h.tokens: h.posterior for h in t.nbest} for t in (fresh, stored))
    gaps = [abs(now.get(tokens, 0.0) - then.get(tokens, 0.0)) for tokens in {*now, *then}]
    distance = sum(gaps) / 2 if now and then else float(bool(now) != bool(then))
    return _Comparison(
        nbest_distance=distance, worst=distance, best_agrees=_best(fresh) == _best(stored)
    )


def _best(targets: UtteranceTargets) -> tuple[int, ...]:
    return tuple(targets.nbest[0].tokens) if targets.nbest else ()
