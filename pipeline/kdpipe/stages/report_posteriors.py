"""The students' CTC posteriors beside the teacher's stored ones, on a sample of a store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kdpipe.batching import collate
from kdpipe.checkpoint import ModelBundle, load_model
from kdpipe.features.prepared import PreparedData, PreparedSplit
from kdpipe.models.lengths import subsampled_lengths
from kdpipe.scoring.page import FrameAgreement, PosteriorPicture, PosteriorRow
from kdpipe.search.ctc_greedy import ctc_greedy
from kdpipe.stages.device import pick_device
from kdpipe.stages.recognise import read_tokens
from kdpipe.store import SparsePosterior, TeacherStore, open_store

__all__ = ["PosteriorSettings", "posterior_material"]

BINS = 20
RELIABILITY_BINS = 10
FEWEST_FRAMES = 20
"""A point of the reliability curve needs as many frames."""
SHOWN_ABOVE = 0.2
"""Posterior that a class must exceed once to get a row of the heat map."""
LONGEST_PICTURE = 160
"""Encoder frames of the longest utterance that is drawn."""
MOST_ROWS = 3
"""Students drawn below the teacher."""
BATCH = 8
PIECES = {"<blank>": "blank", "\u2581": "space"}
"""Pieces that are no text, as the heat map labels them."""
Array = NDArray[np.float64]
Splits = Mapping[str, Sequence[tuple[PreparedData, str]]]
"""Every preparation of a split at hand, by the digest of its manifest."""


@dataclass(frozen=True)
class PosteriorSettings:
    """pictures: utterances drawn (0: the students are not run). sample: utterances compared."""

    pictures: int = 3
    sample: int = 64
    device: str = "auto"


@dataclass
class _Tally:
    """Sums over the frames of a sample, for one student."""

    frames: int = 0
    spoken: int = 0
    same: int = 0
    same_spoken: int = 0
    kl: float = 0.0
    teacher_counts: Array = field(default_factory=lambda: np.zeros(BINS))
    student_counts: Array = field(default_factory=lambda: np.zeros(BINS))
    bins: Array = field(default_factory=lambda: np.zeros((RELIABILITY_BINS, 3)))


def posterior_material(
    stores: Mapping[str, Path], students: Mapping[str, Path], splits: Splits,
    settings: PosteriorSettings,
) -> tuple[tuple[FrameAgreement, ...], tuple[PosteriorPicture, ...], tuple[str, ...]]:  # fmt: skip
    """Agreement of every student with every store it fits, pictures of a few utterances, and
    notes about what does not fit.

    A store's utterances are looked up in `splits` by the digest of its manifest.
    """
    agreements: list[FrameAgreement] = []
    pictures: list[PosteriorPicture] = []
    notes: list[str] = []
    if not settings.pictures or not students:
        return (), (), ()
    device = pick_device(settings.device)
    bundles = {name: load_model(path, device) for name, path in students.items()}
    for name, path in stores.items():
        store = open_store(path, allow_partial=True)
        if store.header.manifest_digest not in splits:
            notes.append(f"The data that the store {name} was dumped from is not among the runs:"
                         " give it with `--data DATA`.")  # fmt: skip
            continue
        data, split_name = _best_fitting(splits[store.header.manifest_digest], store)
        split = data.split(split_name)
        fitting = _fitting(name, store, bundles, data, notes)
        ids = _sample(store, split, settings.sample)
        if fitting and ids:
            found, drawn = _compare(name, store, split, fitting, ids, settings.pictures)
            agreements += found
            pictures += drawn
    return tuple(agreements), tuple(pictures), tuple(notes)


def _best_fitting(
    candidates: Sequence[tuple[PreparedData, str]], store: TeacherStore
) -> tuple[PreparedData, str]:
    """The preparation that the store was dumped from, or else any."""
    wanted = store.header.feature_digest
    same = [candidate for candidate in candidates if candidate[0].feature_digest == wanted]
    return [*same, *candidates][0]


def _fitting(
    name: str, store: TeacherStore, bundles: Mapping[str, ModelBundle], data: PreparedData,
    notes: list[str],
) -> dict[str, ModelBundle]:  # fmt: skip
    """Students whose classes and features are the store's; a note for each other."""
    fitting = {}
    for student, bundle in bundles.items():
        if bundle.tokenizer.fingerprint != store.header.tokenizer.fingerprint:
            notes.append(f"{student} is not compared with the store {name}: other tokenizers.")
        elif bundle.card.feature_digest != data.feature_digest:
            notes.append(f"{student} is not compared with the store {name}: other features.")
        else:
            fitting[student] = bundle
    return fitting


def _sample(store: TeacherStore, split: PreparedSplit, size: int) -> list[str]:
    """A fixed spread of the ids that store and split share, with equal numbers of frames."""
    shared = [name for name in split.ids if name in store]
    if not shared:
        return []
    chosen = shared[:: max(1, len(shared) // size)][:size]
    stored = store.lengths(chosen)[:, 0].tolist()
    return [
        name
        for name, frames in zip(chosen, stored, strict=True)
        if frames and subsampled_lengths(int(split.frame_counts[split.index(name)])) == frames
    ]


def _compare(
    name: str, store: TeacherStore, split: PreparedSplit, students: Mapping[str, ModelBundle],
    ids: Sequence[str], pictures: int,
) -> tuple[list[FrameAgreement], list[PosteriorPicture]]:  # fmt: skip
    tallies = {student: _Tally() for student in students}
    distances: dict[str, float] = {}
    blank = store.header.tokenizer.blank
    first = _distilled_first(students)[0]
    for student, bundle in students.items():
        for utterance, log_probs in _student_log_probs(bundle, split, ids):
            teacher = store[utterance].frames
            distance = _add_frames(tallies[student], teacher, log_probs, blank)
            if student == first:
                distances[utterance] = distance
    found = [_agreement(name, student, len(ids), tally) for student, tally in tallies.items()]
    shown = {key: students[key] for key in _distilled_first(students)[:MOST_ROWS]}
    chosen = _choose(distances, store, pictures, first)
    drawn = [_picture(store, split, shown, utterance, why) for utterance, why in chosen]
    return found, drawn


def _distilled_first(students: Mapping[str, ModelBundle]) -> list[str]:
    return sorted(students, key=lambda name: (not students[name].card.lineage, name))


def _student_log_probs(
    bundle: ModelBundle, split: PreparedSplit, ids: Sequence[str]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """CTC log-posteriors (frames, V) of each utterance, a batch at a time."""
    device = next(bundle.model.parameters()).device
    places = sorted((split.index(name) for name in ids), key=lambda i: int(split.frame_counts[i]))
    for start in range(0, len(places), BATCH):
        batch = collate(split, bundle.cmvn, places[start : start + BATCH]).to(device)
        with torch.inference_mode():
            encoded = bundle.model.encode(batch.features, batch.feature_lengths)
            log_probs = bundle.model.ctc_log_probs(encoded.hidden).cpu().numpy()
        for name, rows, length in zip(batch.ids, log_probs, encoded.lengths.tolist(), strict=True):
            yield name, rows[:length]


def _add_frames(
    tally: _Tally, teacher: SparsePosterior, log_probs: NDArray[np.float32], blank: int
) -> float:
    """Count one utterance; returns its mean KL(teacher || student), nats a frame."""
    firsts = np.cumsum(teacher.counts, dtype=np.int64) - teacher.counts
    best = teacher.ids[firsts]
    sure = np.exp(teacher.log_probs[firsts])
    student_best = log_probs.argmax(axis=1)
    student_sure = np.exp(log_probs.max(axis=1))
    same, spoken = student_best == best, best != blank
    divergence = _divergence(teacher, log_probs)
    tally.frames += len(best)
    tally.spoken += int(spoken.sum())
    tally.same += int(same.sum())
    tally.same_spoken += int((same & spoken).sum())
    tally.kl += float(divergence.sum())
    edges = np.linspace(0.0, 1.0, BINS + 1)
    tally.teacher_counts += np.histogram(np.clip(sure[spoken], 0, 1), edges)[0]
    tally.student_counts += np.histogram(np.clip(student_sure[spoken], 0, 1), edges)[0]
    places = np.minimum((student_sure * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
    np.add.at(tally.bins, places, np.stack([student_sure, same, np.ones(len(same))], axis=1))
    return float(divergence.mean())


def _divergence(teacher: SparsePosterior, log_probs: NDArray[np.float32]) -> Array:
    """KL(teacher || student) of each frame, with the classes that are not stored as one class."""
    rows = np.repeat(np.arange(len(teacher.counts)), teacher.counts)
    student = log_probs[rows, teacher.ids].astype(np.float64)
    stored = teacher.log_probs.astype(np.float64)
    mass, rest = np.exp(stored), teacher.tail.astype(np.float64)
    kept = np.bincount(rows, mass * (stored - student), len(rest))
    student_rest = 1.0 - np.bincount(rows, np.exp(student), len(rest))
    ratio = np.log(np.maximum(rest, 1e-12)) - np.log(np.maximum(student_rest, 1e-12))
    return np.asarray(kept + rest * ratio)


def _agreement(store: str, student: str, utterances: int, tally: _Tally) -> FrameAgreement:
    reliability = [
        (float(total / count), float(same / count), int(count))
        for total, same, count in tally.bins.tolist()
        if count >= FEWEST_FRAMES
    ]
    return FrameAgreement(
        store=store,
        student=student,
        utterances=utterances,
        frames=tally.frames,
        spoken=tally.spoken,
        same=tally.same / max(tally.frames, 1),
        same_spoken=tally.same_spoken / max(tally.spoken, 1),
        kl=tally.kl / max(tally.frames, 1),
        teacher_counts=tuple(int(n) for n in tally.teacher_counts),
        student_counts=tuple(int(n) for n in tally.student_counts),
        reliability=tuple(reliability),
    )


def _choose(
    distances: Mapping[str, float], store: TeacherStore, pictures: int, student: str
) -> list[tuple[str, str]]:
    """Utterances spread over the ranks of `student`'s distance from the teacher, farthest last."""
    lengths = store.lengths(list(distances))[:, 0].tolist()
    short = [name for name, frames in zip(distances, lengths, strict=True)
             if frames <= LONGEST_PICTURE]  # fmt: skip
    ranked = sorted(short or distances, key=lambda name: (distances[name], name))
    count = min(pictures, len(ranked))
    ranks = [round((len(ranked) - 1) * (i + 1) / count) for i in range(count)]
    return [(ranked[rank], _why(rank, ranked, distances, student)) for rank in ranks]


def _why(rank: int, ranked: Sequence[str], distances: Mapping[str, float], student: str) -> str:
    distance = f"{distances[ranked[rank]]:.3f} nats a frame"
    if rank == len(ranked) - 1:
        return (
            f"where {student} is farthest from the teacher of {len(ranked)} utterances: {distance}"
        )
    return f"{student}'s distance from the teacher is {rank + 1} of {len(ranked)}: {distance}"


def _picture(
    store: TeacherStore, split: PreparedSplit, students: Mapping[str, ModelBundle],
    utterance: str, why: str,
) -> PosteriorPicture:  # fmt: skip
    """The teacher's stored posteriors and the students', on the classes that matter in any."""
    targets, header = store[utterance], store.header
    tokenizer = next(iter(students.values())).tokenizer
    best = targets.nbest[0].tokens if targets.nbest else ()
    said = f"best of {len(targets.nbest)} stored hypotheses"
    rows = [(header.teacher.name, said, best, _dense(targets.frames, header.tokenizer.vocab_size))]
    for student, bundle in students.items():
        ((_, log_probs),) = _student_log_probs(bundle, split, [utterance])
        rows.append((student, "greedy CTC", _greedy(log_probs), np.exp(log_probs.astype(float))))
    blank = header.tokenizer.blank
    classes = _shown_classes([values for *_, values in rows], blank)
    entry = split.utterance(split.index(utterance))
    return PosteriorPicture(
        utterance,
        why,
        entry.text or "",
        header.frame_shift_seconds,
        tuple(PIECES.get(tokenizer.pieces[c], tokenizer.pieces[c]) for c in classes),
        tuple(
            PosteriorRow(name, origin, read_tokens(tokenizer, tokens), values[:, classes])
            for name, origin, tokens, values in rows
        ),
    )


def _greedy(log_probs: NDArray[np.float32]) -> tuple[int, ...]:
    """Tokens of the best CTC path."""
    frames = torch.from_numpy(log_probs)[None]
    (found,) = ctc_greedy(frames, torch.tensor([frames.shape[1]]))
    return tuple(found.tokens)


def _dense(posterior: SparsePosterior, classes: int) -> Array:
    """(frames, classes) probabilities; what was not stored is 0."""
    dense = np.zeros((len(posterior), classes))
    rows = np.repeat(np.arange(len(posterior)), posterior.counts)
    dense[rows, posterior.ids] = np.exp(posterior.log_probs)
    return dense


def _shown_classes(posteriors: Sequence[Array], blank: int) -> list[int]:
    """Classes above `SHOWN_ABOVE` in some frame of some model; blank last.

    Ordered by the first such frame in the first model that has one.
    """
    above = np.stack(posteriors) > SHOWN_ABOVE
    frames = above.shape[1]
    first = np.where(above.any(axis=1), above.argmax(axis=1), frames)
    models = above.any(axis=1).argmax(axis=0)
    shown = [c for c in np.flatnonzero(above.any(axis=(0, 1))).tolist() if c != blank]
    return [*sorted(shown, key=lambda c: (int(first[models[c], c]), c)), blank]
