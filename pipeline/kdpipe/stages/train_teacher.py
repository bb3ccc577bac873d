"""train-teacher: joint CTC/attention training of the autoregressive teacher (Eq. 1-3)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from kdpipe.batching import Batch
from kdpipe.config import Recipe, to_table
from kdpipe.features.prepared import PreparedData
from kdpipe.features.specaugment import spec_augment
from kdpipe.losses import (
    DistillationWeights,
    attention_inputs,
    attention_loss,
    combine,
    ctc_loss,
    reduce_terms,
)
from kdpipe.models import RecognitionModel
from kdpipe.stages.build import fresh_model, in_frames, specaugment_settings, train_and_save
from kdpipe.stages.claim import claimed, mark_complete
from kdpipe.stages.device import pick_device
from kdpipe.stages.pseudo_labels import require_texts
from kdpipe.stages.tensorboard import require_tensorboard
from kdpipe.stages.training import StepLosses
from kdpipe.text.tokenizer import Tokenizer

__all__ = ["teacher_losses", "train_teacher"]


def train_teacher(
    data: Path,
    recipe: Recipe,
    out: Path,
    seed: int,
    device: str,
    tensorboard: Path | None = None,
) -> bool:
    """Train a teacher into the model directory `out`; resumes what an earlier call began.

    Returns False where `out` was already complete. Errors: those of `PreparedData.open`,
    `claimed` and `run_training`; `DependencyError` where the folder `tensorboard` is given and
    its package is not installed.
    """
    if tensorboard is not None:
        require_tensorboard()
    where = pick_device(device)
    prepared = PreparedData.open(data)
    train = prepared.split("train")
    require_texts(train, "Prepare the labelled speech alone for the teacher")
    tokenizer = Tokenizer.load(prepared.tokenizer)
    settings = {
        "command": "train-teacher",
        "tokenizer": tokenizer.fingerprint,
        "teacher": to_table(recipe.teacher),
        "specaugment": to_table(recipe.specaugment),
        "train_digest": train.manifest_digest,
        **train.content,
        "feature_digest": prepared.feature_digest,
        "seed": seed,
    }
    with claimed(out, settings) as complete:
        if complete:
            return False
        dim = prepared.filterbank.dim
        model = fresh_model(recipe.teacher.model, "ar", tokenizer, seed, where, dim)
        counted = in_frames(recipe, prepared.filterbank)
        losses = teacher_losses(model, counted)
        train_and_save(
            out, model, losses, prepared, counted.teacher.training, recipe, seed,
            tensorboard=tensorboard,
        )  # fmt: skip
        mark_complete(out, settings)
    return True


def teacher_losses(model: RecognitionModel, recipe: Recipe) -> StepLosses:
    """L_jca = alpha L_ctc + (1 - alpha) L_ar (Eq. 3) of one batch, each term by name."""
    augment = specaugment_settings(recipe.specaugment)
    training, scale = recipe.teacher.training, recipe.teacher.scale
    weights = DistillationWeights(alpha=training.ctc_weight)
    sos_eos = model.config.vocab_size - 1

    def losses(batch: Batch, epoch: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        features = spec_augment(batch.features, batch.feature_lengths, augment, generator)
        encoded = model.encode(features, batch.feature_lengths)
        inputs = attention_inputs(batch.tokens, batch.token_lengths, sos_eos)
        logits = model.decoder_logits(encoded, inputs, batch.token_lengths + 1)
        terms = {
            "ctc": ctc_loss(
                model.ctc_log_probs(encoded.hidden),
                encoded.lengths,
                batch.tokens,
                batch.token_lengths,
            ),
            "attention": attention_loss(
                logits, batch.tokens, batch.token_lengths, sos_eos, training.label_smoothing
            ),
        }
        return combine(reduce_terms(terms, scale), weights)

    return losses
