"""teacher-dump: run the teacher once over a split and write its targets to a store.

Per utterance: CTC posteriors per encoder frame, decoder posteriors teacher-forced on the
reference (and at the end of sentence), and the N-best of the joint beam search.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kdpipe.batching import Batch, batch_loader, sorted_batches
from kdpipe.checkpoint import ModelBundle, load_model, weights_digest
from kdpipe.errors import BusyOutputError, ConfigError, OutputConflictError
from kdpipe.features.prepared import PreparedData, PreparedSplit
from kdpipe.losses import attention_inputs
from kdpipe.models import SUBSAMPLING, Encoded
from kdpipe.progress import progress_bar
from kdpipe.search.joint_beam import ArHypothesis, joint_beam_search
from kdpipe.stages.agreement import require_same_features, require_same_tokenizer
from kdpipe.stages.claim import settings_changes
from kdpipe.stages.device import keep_freed_memory, pick_device
from kdpipe.store import (
    EMPTY_POSTERIOR,
    SparsePosterior,
    StoredHypothesis,
    StoreHeader,
    StoreWriter,
    TeacherIdentity,
    TokenizerIdentity,
    UtteranceTargets,
    finish,
    open_store,
    sparsify,
    store_state,
)

__all__ = ["DumpSettings", "Shard", "dump_header", "teacher_dump", "teacher_targets"]


@dataclass(frozen=True)
class DumpSettings:
    """What is kept of the teacher's posteriors, and how its N-best is searched.

    `batch_frames` (10 ms feature frames, padding included) the teacher sees at once; it decides
    the last bits of every score, so resuming with another one is refused.
    """

    top_k: int = 32
    min_prob: float = 1e-3
    codec: str = "log8"
    nbest: int = 10
    beam: int = 10
    ctc_weight: float = 0.3
    batch_frames: int = 16_000


@dataclass(frozen=True)
class Shard:
    """This process's part of the work: batches whose number is `index` modulo `count`.

    The cut into batches depends on the split alone, and a batch that is broken off is computed
    again as a whole: so shards, kills and resumes change no bit of what is stored.
    """

    index: int = 0
    count: int = 1


def teacher_dump(
    data: Path,
    split: str,
    teacher: Path,
    out: Path,
    settings: DumpSettings,
    shard: Shard,
    device: str,
    fidelity_sample: int = 100,
    licence: str = "",
) -> bool:
    """Write the targets of `split` to the store `out` (.zarr or .h5); resumes.

    The writer that finds every utterance acknowledged finishes the store. Returns True when
    the store is complete, False while other shards are still to come. Raises `MismatchError`
    where the teacher was trained on another tokenizer or other features than the data has,
    and the writer's errors.
    """
    keep_freed_memory()
    prepared = PreparedData.open(data)
    bundle = load_model(teacher, pick_device(device))
    _check_teacher(bundle, prepared)
    chosen = prepared.split(split)
    header = dump_header(bundle, prepared, chosen, split, settings, licence)
    if store_state(out) == "complete":
        return _check_complete(out, header)
    ids = list(chosen.ids)
    with StoreWriter(out, header, writer=f"{shard.index}of{shard.count}") as writer:
        batches = sorted_batches(chosen.frame_counts.tolist(), settings.batch_frames, 256)
        sample = set(_sample(ids, fidelity_sample))
        _dump(bundle, chosen, batches[shard.index :: shard.count], writer, settings, sample)
        writer.flush()
        missing = len(set(ids) - writer.done_ids())
    if missing:
        return False
    return _finish(out, ids)


def _finish(out: Path, ids: Sequence[str]) -> bool:
    """Finish the store unless another writer, seeing it whole too, is about to."""
    try:
        finish(out, expected=ids)
    except BusyOutputError:
        return False
    return True


def _check_complete(out: Path, header: StoreHeader) -> bool:
    """A complete store must be the one that was asked for."""
    changes = settings_changes(open_store(out).header.identity(), header.identity())
    if changes:
        raise OutputConflictError(out, changes)
    return True


def dump_header(
    bundle: ModelBundle,
    prepared: PreparedData,
    split: PreparedSplit,
    name: str,
    settings: DumpSettings,
    licence: str = "",
) -> StoreHeader:
    """Everything that a student must agree with before it learns from the store."""
    tokenizer = bundle.tokenizer
    return StoreHeader(
        teacher=TeacherIdentity(bundle.card.name, weights_digest(bundle.path)),
        tokenizer=TokenizerIdentity(
            tokenizer.fingerprint,
            tokenizer.vocab_size,
            tokenizer.blank_id,
            tokenizer.sos_eos_id,
            tokenizer.sos_eos_id,
        ),
        feature_digest=prepared.feature_digest,
        cmvn_digest=bundle.cmvn.digest(),
        subsampling=SUBSAMPLING,
        frame_shift_seconds=prepared.filterbank.frame_shift_seconds * SUBSAMPLING,
        manifest_digest=split.manifest_digest,
        split=name,
        decode={
            "beam": settings.beam,
            "ctc_weight": settings.ctc_weight,
            "batch_frames": settings.batch_frames,
        },
        nbest=settings.nbest,
        top_k=settings.top_k,
        min_prob=settings.min_prob,
        codec=settings.codec,
        licence=licence,
        expected_utterances=len(split),
    )


def teacher_targets(
    bundle: ModelBundle, batch: Batch, settings: DumpSettings
) -> Iterator[tuple[UtteranceTargets, tuple[NDArray[np.float32], NDArray[np.float32]]]]:
    """Each utterance's targets and the dense posteriors (T', V), (L+1, V) they came from."""
    with torch.inference_mode():
        encoded = bundle.model.encode(batch.features, batch.feature_lengths)
        frames = bundle.model.ctc_log_probs(encoded.hidden).cpu().numpy()
        tokens = _decoder_log_probs(bundle, encoded, batch).cpu().numpy()
        found = joint_beam_search(
            bundle.model,
            encoded,
            beam=settings.beam,
            ctc_weight=settings.ctc_weight,
            nbest=settings.nbest,
        )
    for row, identifier in enumerate(batch.ids):
        length = int(batch.token_lengths[row])
        dense = (
            np.ascontiguousarray(frames[row, : int(encoded.lengths[row])]),
            np.ascontiguousarray(tokens[row, : length + 1 if length else 0]),
        )
        reference = tuple(batch.tokens[row, :length].tolist())
        yield _targets(identifier, dense, reference, found[row], settings), dense


def _decoder_log_probs(bundle: ModelBundle, encoded: Encoded, batch: Batch) -> torch.Tensor:
    sos_eos = bundle.tokenizer.sos_eos_id
    inputs = attention_inputs(batch.tokens, batch.token_lengths, sos_eos)
    logits = bundle.model.decoder_logits(encoded, inputs, batch.token_lengths + 1)
    return logits.float().log_softmax(-1)


def _targets(
    identifier: str,
    dense: tuple[NDArray[np.float32], NDArray[np.float32]],
    reference: tuple[int, ...],
    found: Sequence[ArHypothesis],
    settings: DumpSettings,
) -> UtteranceTargets:
    frames, tokens = (_sparse(rows, settings) for rows in dense)
    return UtteranceTargets(
        identifier, frames, tokens, reference, _stored(found), _status(reference, found, settings)
    )


def _sparse(dense: NDArray[np.float32], settings: DumpSettings) -> SparsePosterior:
    if not len(dense):
        return EMPTY_POSTERIOR
    return sparsify(dense, settings.top_k, settings.min_prob)


def _status(
    reference: tuple[int, ...], found: Sequence[ArHypothesis], settings: DumpSettings
) -> str:
    if not reference:
        return "no-reference"
    if not found:
        return "no-nbest"
    return "ok" if len(found) == settings.nbest else "short-nbest"


def _stored(found: Sequence[ArHypothesis]) -> tuple[StoredHypothesis, ...]:
    """The N-best with P' of Eq. 9."""
    if not found:
        return ()
    scores = np.array([hypothesis.score for hypothesis in found], dtype=np.float64)
    weights = np.exp(scores - scores.max())
    return tuple(
        StoredHypothesis(h.tokens, h.attention, h.ctc, h.score, float(p))
        for h, p in zip(found, weights / weights.sum(), strict=True)
    )


def _dump(
    bundle: ModelBundle,
    split: PreparedSplit,
    batches: Sequence[Sequence[int]],
    writer: StoreWriter,
    settings: DumpSettings,
    sample: set[str],
) -> None:
    """Run the teacher over every batch that is not wholly acknowledged."""
    done = writer.done_ids()
    ids = list(split.ids)
    todo = [batch for batch in batches if any(ids[i] not in done for i in batch)]
    device = next(bundle.model.parameters()).device
    with progress_bar(sum(map(len, batches)), f"dump {bundle.card.name}") as bar:
        bar.update(sum(map(len, batches)) - sum(map(len, todo)))
        for batch in batch_loader(split, bundle.cmvn, todo):
            for targets, dense in teacher_targets(bundle, batch.to(device), settings):
                writer.add(targets, dense if targets.id in sample else None)
            bar.update(len(batch.ids))


def _sample(ids: Sequence[str], size: int) -> list[str]:
    """A fixed spread of utterances, whichever writer meets them."""
    step = max(1, len(ids) // max(1, size))
    return list(ids[::step][:size]) if size else []


def _check_teacher(bundle: ModelBundle, prepared: PreparedData) -> None:
    if bundle.model.config.kind != "ar":
        raise ConfigError(
            "teacher-dump", "--teacher", str(bundle.path), "not an autoregressive teacher",
            "Give a model made by train-teacher or import-teacher",
        )  # fmt: skip
    require_same_tokenizer(bundle, prepared)
    require_same_features(bundle, prepared)
