"""This project's own autoregressive teacher: posteriors and N-best of every utterance.

CTC posteriors per encoder frame, decoder posteriors teacher-forced on the reference (and at the end
of sentence), and the N-best of the joint beam search. Without a text the best hypothesis is the
reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kdpipe.batching import Batch, batch_loader, pad_tokens, sorted_batches
from kdpipe.checkpoint import ModelBundle, load_model, weights_digest
from kdpipe.errors import ConfigError
from kdpipe.features.prepared import PreparedData, PreparedSplit
from kdpipe.losses import attention_inputs
from kdpipe.models import Encoded
from kdpipe.search.joint_beam import ArHypothesis, joint_beam_search
from kdpipe.stages.agreement import require_same_features, require_same_tokenizer
from kdpipe.stages.nbest_targets import as_stored, nbest_status, pseudo_label
from kdpipe.stages.speaker import Dense, DumpSettings, Speaker, base_header
from kdpipe.store import (
    EMPTY_POSTERIOR,
    SparsePosterior,
    StoreHeader,
    TeacherIdentity,
    UtteranceTargets,
    sparsify,
)

__all__ = ["dump_header", "own_speaker", "require_teacher", "teacher_targets"]

MAX_UTTERANCES = 256


def own_speaker(
    teacher: Path,
    prepared: PreparedData,
    split: PreparedSplit,
    settings: DumpSettings,
    device: torch.device,
    licence: str,
) -> Speaker:
    """The teacher of a model directory in front of `split`.

    Raises `MismatchError` where it was trained on another tokenizer or other features than the
    data has, `ConfigError` for a model or settings that do not go together.
    """
    bundle = load_model(teacher, device)
    require_teacher(bundle, prepared, "teacher-dump", "--teacher")
    _check_settings(settings)

    def speak(
        batches: Iterable[Sequence[int]],
    ) -> Iterator[Iterator[tuple[UtteranceTargets, Dense | None]]]:
        for batch in batch_loader(split, bundle.cmvn, list(batches)):
            yield teacher_targets(bundle, batch.to(device), settings)

    return Speaker(
        name=bundle.card.name,
        header=dump_header(bundle, prepared, split, settings, licence),
        batches=sorted_batches(split.frame_counts.tolist(), settings.batch_frames, MAX_UTTERANCES),
        speak=speak,
    )


def dump_header(
    bundle: ModelBundle,
    prepared: PreparedData,
    split: PreparedSplit,
    settings: DumpSettings,
    licence: str = "",
) -> StoreHeader:
    """The header of a store of this teacher."""
    teacher = TeacherIdentity(bundle.card.name, weights_digest(bundle.path))
    decode = {
        "beam": settings.beam,
        "ctc_weight": settings.ctc_weight,
        "batch_frames": settings.batch_frames,
    }
    header = base_header(teacher, prepared, bundle.tokenizer, split, settings, decode, licence)
    return replace(header, cmvn_digest=bundle.cmvn.digest())


def teacher_targets(
    bundle: ModelBundle, batch: Batch, settings: DumpSettings
) -> Iterator[tuple[UtteranceTargets, Dense]]:
    """Each utterance's targets and the dense posteriors (T', V), (L+1, V) they came from.

    An utterance without tokens gets those of its first hypothesis (status `pseudo`), or none
    where that cannot be learned from.
    """
    with torch.inference_mode():
        encoded = bundle.model.encode(batch.features, batch.feature_lengths)
        frames = bundle.model.ctc_log_probs(encoded.hidden).cpu().numpy()
        found = joint_beam_search(
            bundle.model,
            encoded,
            beam=settings.beam,
            ctc_weight=settings.ctc_weight,
            nbest=settings.nbest,
        )
        labels = _labels(batch, found, encoded, settings)
        tokens = _decoder_log_probs(bundle, encoded, [label for label, _ in labels])
    for row, (reference, status) in enumerate(labels):
        rows = len(reference) + 1 if reference else 0
        dense = (
            np.ascontiguousarray(frames[row, : int(encoded.lengths[row])]),
            np.ascontiguousarray(tokens[row, :rows]),
        )
        yield _targets(batch.ids[row], dense, reference, found[row], status, settings), dense


def _labels(
    batch: Batch, found: Sequence[Sequence[ArHypothesis]], encoded: Encoded, settings: DumpSettings
) -> list[tuple[tuple[int, ...], str]]:
    """Each utterance's reference and status: its own tokens, or else a pseudo-label."""
    labels = []
    for row, hypotheses in enumerate(found):
        given = tuple(batch.tokens[row, : int(batch.token_lengths[row])].tolist())
        if given:
            labels.append((given, nbest_status(len(hypotheses), settings.nbest)))
        else:
            nbest = [hypothesis.tokens for hypothesis in hypotheses]
            labels.append(pseudo_label(nbest, int(encoded.lengths[row])))
    return labels


def _decoder_log_probs(
    bundle: ModelBundle, encoded: Encoded, references: Sequence[tuple[int, ...]]
) -> NDArray[np.float32]:
    padded, lengths = (tensor.to(encoded.lengths.device) for tensor in pad_tokens(references))
    inputs = attention_inputs(padded, lengths, bundle.tokenizer.sos_eos_id)
    logits = bundle.model.decoder_logits(encoded, inputs, lengths + 1)
    log_probs: NDArray[np.float32] = logits.float().log_softmax(-1).cpu().numpy()
    return log_probs


def _targets(
    identifier: str,
    dense: Dense,
    reference: tuple[int, ...],
    found: Sequence[ArHypothesis],
    status: str,
    settings: DumpSettings,
) -> UtteranceTargets:
    frames, tokens = (_sparse(rows, settings) for rows in dense)
    nbest = as_stored([(h.tokens, h.attention, h.ctc, h.score) for h in found])
    return UtteranceTargets(identifier, frames, tokens, reference, nbest, status)


def _sparse(dense: NDArray[np.float32], settings: DumpSettings) -> SparsePosterior:
    if not len(dense):
        return EMPTY_POSTERIOR
    return sparsify(dense, settings.top_k, settings.min_prob)


def require_teacher(bundle: ModelBundle, prepared: PreparedData, command: str, option: str) -> None:
    """Refuse what is no autoregressive teacher of this data.

    Raises `ConfigError` naming `option` of `command` for another kind of model, `MismatchError`
    for another tokenizer or other features.
    """
    if bundle.model.config.kind != "ar":
        raise ConfigError(
            command, option, str(bundle.path), "not an autoregressive teacher",
            "Give a model made by train-teacher or import-teacher",
        )  # fmt: skip
    require_same_tokenizer(bundle, prepared)
    require_same_features(bundle, prepared)


def _check_settings(settings: DumpSettings) -> None:
    for key, value, default in (
        ("--text-case", settings.text_case, "auto"),
        ("--punctuation", settings.punctuation, "strip"),
    ):
        if value != default:
            raise ConfigError(
                "teacher-dump", key, value, "this teacher writes the data's own tokens",
                "Leave it out: it is for Hugging Face teachers, which give text",
            )  # fmt: skip
