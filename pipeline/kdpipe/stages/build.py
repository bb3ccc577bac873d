"""From recipe sections and prepared data to models, and to what a model directory says."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from kdpipe.batching import BatchSource
from kdpipe.checkpoint import Lineage, ModelCard, save_model
from kdpipe.config import ModelSection, Recipe, SpecAugmentSection, TrainingSection, to_table
from kdpipe.features.filterbank import FEATURE_DIM, FRAME_SHIFT_SECONDS
from kdpipe.features.kinds import Filterbank
from kdpipe.features.prepared import PreparedData
from kdpipe.features.specaugment import SpecAugmentSettings
from kdpipe.models import ModelConfig, RecognitionModel, build_model, size_by_name
from kdpipe.models.config import Kind
from kdpipe.stages.dev_metrics import dev_scorer
from kdpipe.stages.device import keep_freed_memory
from kdpipe.stages.training import StepLosses, TrainingRun, run_training
from kdpipe.text.tokenizer import Tokenizer

__all__ = ["fresh_model", "in_frames", "model_config", "specaugment_settings", "train_and_save"]


def model_config(
    section: ModelSection, kind: Kind, vocab_size: int, feature_dim: int = FEATURE_DIM
) -> ModelConfig:
    """The shape that a recipe's model section asks for, with V = `vocab_size`."""
    if section.size != "custom":
        return size_by_name(
            section.size,
            vocab_size,
            kind,
            encoder_layers=section.encoder_layers,
            decoder_layers=section.decoder_layers,
            kernel=section.kernel,
            dropout=section.dropout,
            positional_dropout=section.dropout,
            feature_dim=feature_dim,
        )
    return ModelConfig(
        kind=kind,
        vocab_size=vocab_size,
        dim=section.dim,
        heads=section.heads,
        inner=section.inner,
        encoder_layers=section.encoder_layers,
        decoder_layers=section.decoder_layers,
        kernel=section.kernel,
        dropout=section.dropout,
        positional_dropout=section.dropout,
        feature_dim=feature_dim,
    )


def in_frames(recipe: Recipe, filterbank: Filterbank) -> Recipe:
    """The recipe with its counts of 10 ms frames as counts of the filterbank's own frames.

    So a batch holds as much speech, and a mask hides as much, whatever the frame shift.
    """
    scale = FRAME_SHIFT_SECONDS / filterbank.frame_shift_seconds

    def training(section: TrainingSection) -> TrainingSection:
        return replace(section, batch_frames=round(section.batch_frames * scale))

    return replace(
        recipe,
        teacher=replace(recipe.teacher, training=training(recipe.teacher.training)),
        student=replace(recipe.student, training=training(recipe.student.training)),
        specaugment=replace(
            recipe.specaugment,
            time_width=round(recipe.specaugment.time_width * scale),
            time_warp=round(recipe.specaugment.time_warp * scale),
        ),
    )


def specaugment_settings(section: SpecAugmentSection) -> SpecAugmentSettings:
    """The plain settings of SpecAugment."""
    return SpecAugmentSettings(
        time_masks=section.time_masks,
        time_width=section.time_width,
        time_fraction=section.time_fraction,
        frequency_masks=section.frequency_masks,
        frequency_width=section.frequency_width,
        time_warp=section.time_warp,
    )


def fresh_model(
    section: ModelSection,
    kind: Kind,
    tokenizer: Tokenizer,
    seed: int,
    device: torch.device,
    feature_dim: int = FEATURE_DIM,
) -> RecognitionModel:
    """A model with its first weights drawn from `seed`, for `feature_dim` values a frame."""
    torch.manual_seed(seed)
    config = model_config(section, kind, tokenizer.vocab_size, feature_dim)
    return build_model(config).to(device)


def train_and_save(
    out: Path,
    model: RecognitionModel,
    losses: StepLosses,
    prepared: PreparedData,
    settings: TrainingSection,
    recipe: Recipe,
    seed: int,
    lineage: tuple[Lineage, ...] = (),
    tensorboard: Path | None = None,
    train: BatchSource | None = None,
) -> None:
    """Train on the train split, watch the dev split, write the model directory.

    `settings` count in the data's own frames; `recipe` is what the model card says.
    `train` takes the train split's place where not all of it, or with other labels, is learned.
    """
    keep_freed_memory()
    tokenizer = Tokenizer.load(prepared.tokenizer)
    device = next(model.parameters()).device
    dev = dev_scorer(
        model, prepared.split("dev"), prepared.cmvn, tokenizer, settings.batch_frames, device
    )
    run = TrainingRun(
        out=out,
        model=model,
        losses=losses,
        split=train or prepared.split("train"),
        cmvn=prepared.cmvn,
        settings=settings,
        seed=seed,
        device=device,
        dev_metrics=dev,
        label=f"{out.name} on {device}",
        tensorboard=tensorboard,
    )
    weights = run_training(run)
    card = ModelCard(
        name=out.name,
        sizes=model.config,
        tokenizer_fingerprint=tokenizer.fingerprint,
        feature_type=prepared.feature_type,
        feature_digest=prepared.feature_digest,
        manifest_digest=prepared.split("train").manifest_digest,
        seed=seed,
        kdpipe_version=version("kdpipe"),
        lineage=lineage,
        recipe=to_table(recipe),
        features=prepared.settings["features"],
    )
    save_model(out, card, weights, prepared.tokenizer, prepared.cmvn)
