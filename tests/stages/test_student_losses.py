"""What a recipe says of the losses reaches them: SpecAugment, label smoothing, alpha."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from kdpipe.batching import Batch, collate
from kdpipe.config import Recipe, SpecAugmentSection, to_table
from kdpipe.features.prepared import PreparedData
from kdpipe.features.specaugment import spec_augment
from kdpipe.models import RecognitionModel
from kdpipe.stages.build import fresh_model, specaugment_settings
from kdpipe.stages.train_student import student_losses
from kdpipe.stages.train_teacher import teacher_losses
from kdpipe.stages.training import StepLosses, autocast
from kdpipe.testing import tiny_recipe
from kdpipe.text.tokenizer import Tokenizer

Role = Literal["teacher", "student"]
BOTH = pytest.mark.parametrize("role", ["teacher", "student"])
CPU = torch.device("cpu")
DECODER_TERM = {"teacher": "attention", "student": "mlm"}
MASKED = ("specaugment.time_masks=2", "specaugment.frequency_masks=2")


def make_model(data: PreparedData, role: Role) -> RecognitionModel:
    """Random weights, without dropout: what differs then comes from the recipe."""
    tokenizer = Tokenizer.load(data.tokenizer)
    recipe = tiny_recipe()
    if role == "teacher":
        return fresh_model(recipe.teacher.model, "ar", tokenizer, 0, CPU).eval()
    return fresh_model(recipe.student.model, "mask-ctc", tokenizer, 0, CPU).eval()


def make_losses(model: RecognitionModel, role: Role, recipe: Recipe) -> StepLosses:
    if role == "teacher":
        return teacher_losses(model, recipe)
    return student_losses(model, recipe, None)


def make_batch(data: PreparedData) -> Batch:
    return collate(data.split("train"), data.cmvn, [0, 5, 7])


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def changed(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> set[str]:
    assert first.keys() == second.keys()
    return {name for name in first if not torch.equal(first[name], second[name])}


def terms_of(data: PreparedData, role: Role, *recipes: Recipe) -> list[Mapping[str, Tensor]]:
    """The terms of one batch by each recipe, with one model and the same draws."""
    model, batch = make_model(data, role), make_batch(data)
    with torch.no_grad():
        return [make_losses(model, role, recipe)(batch, 0, generator()) for recipe in recipes]


@BOTH
def test_specaugment_masks_what_the_model_hears(tiny_data: PreparedData, role: Role) -> None:
    model, batch, masked = make_model(tiny_data, role), make_batch(tiny_data), tiny_recipe(*MASKED)
    settings = specaugment_settings(masked.specaugment)
    features = spec_augment(batch.features, batch.feature_lengths, settings, generator())
    by_hand = make_losses(model, role, tiny_recipe())(
        replace(batch, features=features), 0, generator()
    )
    plain, augmented = terms_of(tiny_data, role, tiny_recipe(), masked)
    assert not torch.equal(plain["ctc"], augmented["ctc"])
    assert not torch.equal(plain[DECODER_TERM[role]], augmented[DECODER_TERM[role]])
    torch.testing.assert_close(augmented["ctc"], by_hand["ctc"])


@BOTH
def test_specaugment_draws_from_the_epochs_generator(tiny_data: PreparedData, role: Role) -> None:
    losses = make_losses(make_model(tiny_data, role), role, tiny_recipe(*MASKED))
    batch, going_on = make_batch(tiny_data), generator()
    first, second = (losses(batch, 0, going_on)["ctc"] for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(losses(batch, 0, generator())["ctc"], first)


def test_every_setting_of_specaugment_arrives() -> None:
    section = SpecAugmentSection(3, 4, 5, 6, 0.7, 8)
    assert asdict(specaugment_settings(section)) == to_table(section)


@BOTH
def test_label_smoothing_changes_the_decoders_loss_alone(
    tiny_data: PreparedData, role: Role
) -> None:
    recipes = [tiny_recipe(f"{role}.training.label_smoothing={value}") for value in (0.0, 0.2)]
    sharp, smooth = terms_of(tiny_data, role, *recipes)
    assert changed(sharp, smooth) == {DECODER_TERM[role], "total"}


@BOTH
def test_alpha_weighs_the_two_losses(tiny_data: PreparedData, role: Role) -> None:
    (terms,) = terms_of(tiny_data, role, tiny_recipe(f"{role}.training.ctc_weight=0.8"))
    expected = 0.8 * terms["ctc"] + 0.2 * terms[DECODER_TERM[role]]
    torch.testing.assert_close(terms["total"], expected)


@BOTH
def test_what_the_other_model_is_trained_with_changes_nothing(
    tiny_data: PreparedData, role: Role
) -> None:
    other = "student" if role == "teacher" else "teacher"
    keys = (f"{other}.training.label_smoothing=0.3", f"{other}.training.ctc_weight=0.9")
    first, second = terms_of(tiny_data, role, tiny_recipe(), tiny_recipe(*keys))
    assert changed(first, second) == set()


@BOTH
def test_bf16_gives_nearly_the_losses_of_float32(tiny_data: PreparedData, role: Role) -> None:
    model, batch = make_model(tiny_data, role), make_batch(tiny_data)
    losses = make_losses(model, role, tiny_recipe())
    exact = losses(batch, 0, generator())["total"]
    with autocast(CPU, "bf16"):
        rough = losses(batch, 0, generator())["total"]
    torch.autograd.backward(rough)
    assert rough.dtype == torch.float32
    assert 0.0 < float((rough - exact).detach().abs()) < 0.05 * float(exact.detach())
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
