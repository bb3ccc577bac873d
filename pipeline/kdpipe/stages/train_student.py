"""train-student: Mask-CTC training with the distillation losses of Eq. 7-13, in two stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from kdpipe.batching import Batch
from kdpipe.checkpoint import Lineage, load_model, weights_digest
from kdpipe.config import DistillationSection, Recipe, StageSection, to_table
from kdpipe.errors import ConfigError
from kdpipe.features.prepared import PreparedData
from kdpipe.features.specaugment import spec_augment
from kdpipe.files import write_jsonl
from kdpipe.losses import (
    DistillationWeights,
    FlatHypotheses,
    UtteranceLoss,
    apply_masks,
    class_log_probs,
    combine,
    ctc_loss,
    decoder_frame_loss,
    decoder_sequence_loss,
    draw_masks,
    encoder_frame_loss,
    encoder_sequence_loss,
    flatten_hypotheses,
    join_losses,
    masked_lm_loss,
    nbest_posteriors,
    reduce_terms,
    usable_hypotheses,
)
from kdpipe.models import Encoded, RecognitionModel
from kdpipe.models.memory import Memory
from kdpipe.stages.build import fresh_model, in_frames, specaugment_settings, train_and_save
from kdpipe.stages.cached_targets import cached_targets, open_targets, store_lineage
from kdpipe.stages.claim import claimed, mark_complete
from kdpipe.stages.device import pick_device
from kdpipe.stages.own_teacher import require_teacher
from kdpipe.stages.pseudo_labels import Labels, learned_source, require_texts, take_labels
from kdpipe.stages.speaker import DumpSettings
from kdpipe.stages.targets import NbestBatch, Targets, TargetSource, online_targets
from kdpipe.stages.tensorboard import require_tensorboard
from kdpipe.stages.training import StepLosses
from kdpipe.store import StoreHeader
from kdpipe.text.tokenizer import Tokenizer

__all__ = ["require_streams", "stage_weights", "student_losses", "train_student"]

NEEDED_STREAM = {
    "encoder_frame": "frames",
    "decoder_frame": "tokens",
    "encoder_sequence": "nbest",
    "decoder_sequence": "nbest",
}


def train_student(
    data: Path,
    recipe: Recipe,
    out: Path,
    store: str | None,
    seed: int,
    device: str,
    allow_partial: bool = False,
    tensorboard: Path | None = None,
    tell: Callable[[str], object] = lambda line: None,
    online_teacher: Path | None = None,
) -> bool:
    """Train a student into `out`, with the targets of `store` or, without one, plainly.

    With `online_teacher` that model runs on every batch in the store's place: no store is needed,
    and every epoch pays for the teacher again.

    Returns False where `out` was already complete. The store is checked against the data
    before training starts: a mismatch raises `MismatchError` naming both sides, and `ConfigError`
    a loss that the store has no targets for. Unlabelled utterances learn the store's pseudo-labels;
    with `allow_partial` a store that is still being written teaches what it has. Those left out
    are listed in `left_out.jsonl`, and `tell` gets the counts. The scalars of
    train.jsonl go to the folder `tensorboard` too, where one is given.
    """
    if tensorboard is not None:
        require_tensorboard()
    prepared = PreparedData.open(data)
    tokenizer = Tokenizer.load(prepared.tokenizer)
    if (store or online_teacher) and recipe.specaugment.time_warp:
        raise ConfigError(
            recipe.name, "specaugment.time_warp", recipe.specaugment.time_warp,
            "time warp moves the student's frames against the teacher's",
            "Set it to 0, or train without --targets and --online-teacher",
        )  # fmt: skip
    where = pick_device(device)
    split = prepared.split("train")
    if online_teacher is None:
        source, lineage, labels = _open(store, prepared, tokenizer, recipe, where, allow_partial)
    else:
        source, lineage, labels = _run_teacher(online_teacher, prepared, recipe, where)
    settings = _settings(recipe, prepared, tokenizer, lineage, seed)
    if online_teacher is not None:
        settings["online_teacher"] = lineage[0].teacher_sha256
    with claimed(out, settings) as complete:
        if complete:
            return False
        dim = prepared.filterbank.dim
        model = fresh_model(recipe.student.model, "mask-ctc", tokenizer, seed, where, dim)
        epochs = sum(stage.epochs for stage in recipe.student.stages)
        counted = in_frames(recipe, prepared.filterbank)
        training = replace(counted.student.training, epochs=epochs)
        losses = student_losses(model, counted, source)
        _report_labels(out, labels, tell)
        train_and_save(
            out, model, losses, prepared, training, recipe, seed, lineage, tensorboard,
            learned_source(split, labels),
        )  # fmt: skip
        mark_complete(out, settings)
    return True


def _settings(
    recipe: Recipe,
    prepared: PreparedData,
    tokenizer: Tokenizer,
    lineage: Sequence[Lineage],
    seed: int,
) -> dict[str, object]:
    """What a resumed training must agree in."""
    train = prepared.split("train")
    return {
        "command": "train-student",
        "tokenizer": tokenizer.fingerprint,
        "student": to_table(recipe.student),
        "specaugment": to_table(recipe.specaugment),
        "distillation": to_table(recipe.distillation),
        "targets": [entry.store_digest for entry in lineage],
        "train_digest": train.manifest_digest,
        **train.content,
        "feature_digest": prepared.feature_digest,
        "seed": seed,
    }


def _open(
    store: str | None,
    prepared: PreparedData,
    tokenizer: Tokenizer,
    recipe: Recipe,
    device: torch.device,
    allow_partial: bool,
) -> tuple[TargetSource | None, tuple[Lineage, ...], Labels]:
    """The targets of a store, whom they come from, and its pseudo-labels; without one, none."""
    split, settings = prepared.split("train"), recipe.distillation
    if store is None:
        require_texts(split, "Dump a teacher over them and give its store with --targets")
        return None, (), Labels({}, ())
    opened = open_targets(store, prepared, tokenizer, allow_partial)
    require_streams(opened.header, recipe)
    labels = take_labels(split, opened, settings.min_confidence)
    return cached_targets(opened, settings.nbest, device), (store_lineage(opened),), labels


def _run_teacher(
    teacher: Path, prepared: PreparedData, recipe: Recipe, device: torch.device
) -> tuple[TargetSource, tuple[Lineage, ...], Labels]:
    """The teacher in the loop, with the same floor as a store of default settings."""
    require_texts(prepared.split("train"), "Dump the teacher over them and give its store")
    bundle = load_model(teacher, device)
    require_teacher(bundle, prepared, "train-student", "--online-teacher")
    dump = DumpSettings()
    source = online_targets(
        bundle.model, dump.top_k, dump.min_prob, recipe.distillation.nbest, dump.beam,
        dump.ctc_weight,
    )  # fmt: skip
    lineage = Lineage("online", bundle.card.name, weights_digest(teacher))
    return source, (lineage,), Labels({}, ())


def _report_labels(out: Path, labels: Labels, tell: Callable[[str], object]) -> None:
    if not (labels.tokens or labels.left_out):
        return
    tell(labels.summary())
    write_jsonl(out / "left_out.jsonl", map(asdict, labels.left_out))


def require_streams(header: StoreHeader, recipe: Recipe) -> None:
    """Raise `ConfigError` where a stage has a weight for posteriors that the store does not hold.

    The frame-level losses need the streams `frames` (after the encoder) and `tokens` (after the
    decoder); the sequence-level ones and pseudo-labels need `nbest`.
    """
    stages, sequence = recipe.student.stages, recipe.distillation.sequence
    for number, stage in enumerate(stages):
        weights = stage_weights([stage], 0, 0.0, sequence)
        lacking = {NEEDED_STREAM[term] for term in weights.needed} - set(header.streams)
        if not lacking:
            continue
        key = "beta_sequence" if lacking == {"nbest"} else "beta_frame"
        zeros = " ".join(f"--set student.stages.{i}.{key}=0" for i in range(len(stages)))
        raise ConfigError(
            recipe.name, f"student.stages.{number}.{key}", getattr(stage, key),
            f"the store has no {' and '.join(sorted(lacking))}, only {', '.join(header.streams)}",
            f"Give {zeros}",
        )  # fmt: skip


def stage_weights(
    stages: Sequence[StageSection], epoch: int, alpha: float, sequence: bool
) -> DistillationWeights:
    """The weights of the stage that `epoch` (from 0) falls in."""
    passed = 0
    for stage in stages:
        passed += stage.epochs
        if epoch < passed:
            break
    return DistillationWeights(
        alpha=alpha,
        beta_frame=stage.beta_frame,
        beta_sequence=stage.beta_sequence if sequence else 0.0,
        gamma_encoder=stage.gamma_encoder,
        gamma_decoder=stage.gamma_decoder,
    )


def student_losses(
    model: RecognitionModel, recipe: Recipe, source: TargetSource | None
) -> StepLosses:
    """The total of Eq. 13 of one batch, each term by name; without `source`, L_jca alone."""
    augment = specaugment_settings(recipe.specaugment)
    section, settings = recipe.student, recipe.distillation
    alpha, smoothing = section.training.ctc_weight, section.training.label_smoothing
    copies = section.masks_per_utterance

    def losses(batch: Batch, epoch: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        weights = DistillationWeights(alpha=alpha)
        if source is not None:
            weights = stage_weights(section.stages, epoch, alpha, settings.sequence)
        features = spec_augment(batch.features, batch.feature_lengths, augment, generator)
        encoded = model.encode(features, batch.feature_lengths)
        memory = model.decoder.project_memory(encoded.hidden, encoded.lengths)
        frame_log_probs = model.ctc_log_probs(encoded.hidden)
        tokens = batch.tokens.repeat_interleave(copies, 0)
        lengths = batch.token_lengths.repeat_interleave(copies)
        masks = draw_masks(lengths, generator, tokens.shape[1])
        logits = _masked_logits(model, tokens, lengths, masks, memory)
        terms = {
            "ctc": ctc_loss(frame_log_probs, encoded.lengths, batch.tokens, batch.token_lengths),
            "mlm": masked_lm_loss(logits, tokens, masks, smoothing),
        }
        if source is not None and weights.needed:
            sequences = bool(weights.needed & {"encoder_sequence", "decoder_sequence"})
            targets = source(batch, sequences)
            terms |= _frame_terms(
                targets, encoded, frame_log_probs, logits, masks, batch, settings,
                model.config.vocab_size, weights.needed,
            )  # fmt: skip
            if targets.nbest is not None:
                terms |= _sequence_terms(
                    model, targets.nbest, encoded, frame_log_probs, memory, generator,
                    weights.needed,
                )  # fmt: skip
        return combine(reduce_terms(terms, settings.scale), weights)

    return losses


def _masked_logits(
    model: RecognitionModel, tokens: Tensor, lengths: Tensor, masks: Tensor, memory: Memory
) -> Tensor:
    """Logits (R, L, V + 1) of the decoder that sees `tokens` with `masks` hidden.

    Equally many rows for each utterance, one utterance's rows first.
    """
    mask_id = model.config.vocab_size
    logits: Tensor = model.decoder(apply_masks(tokens, masks, mask_id), lengths, memory)
    return logits


def _frame_terms(
    targets: Targets,
    encoded: Encoded,
    frame_log_probs: Tensor,
    logits: Tensor,
    masks: Tensor,
    batch: Batch,
    settings: DistillationSection,
    vocab_size: int,
    needed: frozenset[str],
) -> dict[str, UtteranceLoss]:
    """F-KD after the encoder (Eq. 7) and after the decoder (Eq. 11).

    `logits` and `masks` hold every utterance as often as it was masked, one utterance after the
    other.
    """
    terms = {}
    if "encoder_frame" in needed:
        terms["encoder_frame"] = encoder_frame_loss(
            frame_log_probs, encoded.lengths, targets.frames, settings.tail, settings.temperature
        )
    if "decoder_frame" in needed:
        log_probs, copies = class_log_probs(logits, vocab_size), len(masks) // len(batch.tokens)
        terms["decoder_frame"] = join_losses(
            decoder_frame_loss(
                log_probs[copy::copies], masks[copy::copies], batch.token_lengths, targets.tokens,
                settings.tail, settings.temperature,
            )
            for copy in range(copies)
        )  # fmt: skip
    return terms


def _sequence_terms(
    model: RecognitionModel,
    nbest: NbestBatch,
    encoded: Encoded,
    frame_log_probs: Tensor,
    memory: Memory,
    generator: torch.Generator,
    needed: frozenset[str],
) -> dict[str, UtteranceLoss]:
    """S-KD after the encoder (Eq. 8) and after the decoder (Eq. 12)."""
    selection = usable_hypotheses(nbest.tokens, nbest.lengths, encoded.lengths, nbest.present)
    posteriors = nbest_posteriors(nbest.scores, selection.usable)
    terms = {}
    if "encoder_sequence" in needed:
        terms["encoder_sequence"] = encoder_sequence_loss(
            frame_log_probs, encoded.lengths, nbest.tokens, nbest.lengths, posteriors
        )
    if "decoder_sequence" in needed:
        terms["decoder_sequence"] = _decoder_sequence(
            model, flatten_hypotheses(nbest.tokens, nbest.lengths, posteriors), memory, generator,
            len(encoded.lengths),
        )  # fmt: skip
    return terms


def _decoder_sequence(
    model: RecognitionModel,
    flat: FlatHypotheses,
    memory: Memory,
    generator: torch.Generator,
    batch_size: int,
) -> UtteranceLoss:
    """S-KD after the decoder; 0 in a batch without a single usable hypothesis."""
    if not len(flat.lengths):
        nothing = flat.posteriors.new_zeros(batch_size)
        return UtteranceLoss(nothing, nothing)
    masks = draw_masks(flat.lengths, generator, flat.tokens.shape[1])
    slots, rows = _equal_rows(flat.utterances, batch_size)
    logits = _masked_logits(
        model, _spread(flat.tokens, slots, rows), _spread(flat.lengths, slots, rows),
        _spread(masks, slots, rows), memory,
    )[slots]  # fmt: skip
    return decoder_sequence_loss(logits, masks, flat, batch_size, model.config.vocab_size)


def _equal_rows(utterances: Tensor, batch_size: int) -> tuple[Tensor, int]:
    """Places of hypotheses where every utterance has equally many, and how many places there are.

    `utterances` (H,) is the utterance of each hypothesis, in order.
    """
    counts = torch.bincount(utterances, minlength=batch_size)
    first = counts.cumsum(0) - counts
    width = int(counts.max())
    rank = torch.arange(len(utterances), device=utterances.device) - first[utterances]
    return utterances * width + rank, batch_size * width


def _spread(values: Tensor, slots: Tensor, rows: int) -> Tensor:
    """`values` at their slots of `rows` rows, 0 elsewhere."""
    return values.new_zeros(rows, *values.shape[1:]).index_copy(0, slots, values)
