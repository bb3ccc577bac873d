"""A batch's teacher targets as tensors, whether they come from a store or from the teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kdpipe.batching import Batch, pad_tokens
from kdpipe.losses import SparseRows, attention_inputs, truncate_rows
from kdpipe.models import RecognitionModel
from kdpipe.search.joint_beam import ArHypothesis, joint_beam_search

__all__ = ["NbestBatch", "TargetSource", "Targets", "nbest_batch", "online_targets"]


@dataclass(frozen=True)
class NbestBatch:
    """N-best lists padded to one number of hypotheses; `scores` are joint log-scores (nats)."""

    tokens: Int[Tensor, "B N L"]
    lengths: Int[Tensor, "B N"]
    scores: Float[Tensor, "B N"]
    present: Bool[Tensor, "B N"]


@dataclass(frozen=True)
class Targets:
    """What the teacher says of a batch.

    `frames`: one row per encoder frame, utterance after utterance. `tokens`: one row per
    reference token and one for the end of sentence. `nbest` is None where no sequence-level
    loss was asked for.
    """

    frames: SparseRows
    tokens: SparseRows
    nbest: NbestBatch | None


TargetSource = Callable[[Batch, bool], Targets]
"""Gives a batch's targets; the flag says whether the N-best is wanted."""


def nbest_batch(
    hypotheses: list[list[tuple[tuple[int, ...], float]]], device: torch.device
) -> NbestBatch:
    """Pad lists of (tokens, joint score), one list an utterance."""
    widest = max(1, *(len(entries) for entries in hypotheses))
    rows = [[*entries, *[((), 0.0)] * (widest - len(entries))] for entries in hypotheses]
    tokens, lengths = pad_tokens([entry[0] for row in rows for entry in row])
    present = torch.tensor([[i < len(entries) for i in range(widest)] for entries in hypotheses])
    scores = torch.tensor([[entry[1] for entry in row] for row in rows], dtype=torch.float32)
    shape = (len(hypotheses), widest)
    return NbestBatch(
        tokens.view(*shape, -1).to(device),
        lengths.view(shape).to(device),
        scores.to(device),
        present.to(device),
    )


def online_targets(
    teacher: RecognitionModel,
    top_k: int | None = None,
    min_prob: float = 0.0,
    nbest: int = 10,
    beam: int = 10,
    ctc_weight: float = 0.3,
) -> TargetSource:
    """Targets by running the teacher on every batch: what a store saves, without a store.

    The teacher (in eval mode) sees the batch without SpecAugment and in float32, as teacher-dump
    does.
    """
    sos_eos = teacher.config.vocab_size - 1

    def targets(batch: Batch, sequences: bool) -> Targets:
        with torch.inference_mode(), torch.autocast(batch.features.device.type, enabled=False):
            return run(batch, sequences)

    def run(batch: Batch, sequences: bool) -> Targets:
        encoded = teacher.encode(batch.features, batch.feature_lengths)
        frames = teacher.ctc_log_probs(encoded.hidden)
        inputs = attention_inputs(batch.tokens, batch.token_lengths, sos_eos)
        logits = teacher.decoder_logits(encoded, inputs, batch.token_lengths + 1)
        found = None
        if sequences:
            lists = joint_beam_search(
                teacher, encoded, beam=beam, ctc_weight=ctc_weight, nbest=nbest
            )
            found = nbest_batch([_scored(h) for h in lists], batch.features.device)
        return Targets(
            truncate_rows(_valid_rows(frames, encoded.lengths), top_k, min_prob),
            truncate_rows(
                _valid_rows(logits.float().log_softmax(-1), batch.token_lengths + 1),
                top_k,
                min_prob,
            ),
            found,
        )

    return targets


def _scored(hypotheses: list[ArHypothesis]) -> list[tuple[tuple[int, ...], float]]:
    return [(hypothesis.tokens, hypothesis.score) for hypothesis in hypotheses]


def _valid_rows(values: Float[Tensor, "B T V"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "R V"]:
    inside = torch.arange(values.shape[1], device=lengths.device) < lengths[:, None]
    return values[inside]
