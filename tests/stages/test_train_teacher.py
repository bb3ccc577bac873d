"""The teacher's loss: its scale is its own, whatever the student's is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdpipe.batching import collate
from kdpipe.corpus.manifest import read_manifest
from kdpipe.errors import OutputConflictError
from kdpipe.features.prepared import PreparedData
from kdpipe.stages.build import fresh_model
from kdpipe.stages.prepare import PrepareSettings, prepare
from kdpipe.stages.train_student import train_student
from kdpipe.stages.train_teacher import teacher_losses, train_teacher
from kdpipe.testing import tiny_recipe
from kdpipe.text.tokenizer import Tokenizer


def test_the_teachers_scale_sums_an_utterance_and_the_students_does_nothing(
    tiny_data: PreparedData,
) -> None:
    recipe = tiny_recipe()
    tokenizer = Tokenizer.load(tiny_data.tokenizer)
    model = fresh_model(recipe.teacher.model, "ar", tokenizer, 0, torch.device("cpu")).eval()
    batch = collate(tiny_data.split("train"), tiny_data.cmvn, [0])
    teachers_own = replace(recipe, teacher=replace(recipe.teacher, scale="paper"))
    students = replace(recipe, distillation=replace(recipe.distillation, scale="paper"))
    with torch.no_grad():
        unit, paper, same = (
            teacher_losses(model, each)(batch, 0, torch.Generator().manual_seed(5))
            for each in (recipe, teachers_own, students)
        )
    tokens = int(batch.token_lengths[0])
    assert float(paper["ctc"]) == pytest.approx(tokens * float(unit["ctc"]), rel=1e-5)
    assert float(paper["attention"]) == pytest.approx(
        (tokens + 1) * float(unit["attention"]), rel=1e-5
    )
    assert {name: float(term) for name, term in same.items()} == {
        name: float(term) for name, term in unit.items()
    }


def test_a_model_of_another_tokenizer_is_not_taken_for_complete(
    tiny_data: PreparedData, tmp_path: Path
) -> None:
    """The same speech and texts as other tokens."""
    found = {
        name: read_manifest(tiny_data.folder.parent / name / "manifest.jsonl")
        for name in ("train", "dev")
    }
    vocabulary = Tokenizer.load(tiny_data.tokenizer).vocab_size + 2
    pieces = PrepareSettings(tokenizer="bpe", vocab_size=vocabulary)
    prepare(found, tmp_path / "pieces", pieces, workers=0)
    other, recipe = tmp_path / "pieces", tiny_recipe()
    assert train_teacher(tiny_data.folder, recipe, tmp_path / "teacher", 0, "cpu")
    with pytest.raises(OutputConflictError, match="tokenizer"):
        train_teacher(other, recipe, tmp_path / "teacher", 0, "cpu")
    assert train_student(tiny_data.folder, recipe, tmp_path / "student", None, 0, "cpu")
    with pytest.raises(OutputConflictError, match="tokenizer"):
        train_student(other, recipe, tmp_path / "student", None, 0, "cpu")
