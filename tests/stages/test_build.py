"""From a recipe to a model, and from a training to a model directory."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from kdpipe.checkpoint import load_model
from kdpipe.config import ModelSection
from kdpipe.corpus.manifest import read_manifest
from kdpipe.features.espnet_filterbank import EspnetFilterbank
from kdpipe.features.filterbank import KaldiFilterbank
from kdpipe.features.prepared import PreparedData
from kdpipe.files import read_json, read_jsonl
from kdpipe.stages.build import fresh_model, in_frames, model_config
from kdpipe.stages.decode import Runtime, decode_split
from kdpipe.stages.prepare import PrepareSettings, prepare
from kdpipe.stages.recognise import SearchSettings
from kdpipe.stages.train_teacher import train_teacher
from kdpipe.testing import tiny_recipe
from kdpipe.text.tokenizer import Tokenizer

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "section",
    [
        ModelSection("custom", 24, 3, 40, 2, 3, 5, 0.25),
        ModelSection("XS", encoder_layers=2, decoder_layers=3, kernel=5, dropout=0.25),
    ],
)
def test_every_size_of_a_model_section_arrives(section: ModelSection) -> None:
    found = asdict(model_config(section, "ar", 17, feature_dim=83))
    assert found["kind"] == "ar"
    assert (found["vocab_size"], found["feature_dim"]) == (17, 83)
    assert (found["encoder_layers"], found["decoder_layers"], found["kernel"]) == (2, 3, 5)
    assert (found["dropout"], found["positional_dropout"]) == (0.25, 0.25)
    if section.size == "custom":
        assert (found["dim"], found["heads"], found["inner"]) == (24, 3, 40)


def test_recipes_count_frames_of_ten_milliseconds() -> None:
    recipe = tiny_recipe("specaugment.time_width=30", "specaugment.time_warp=5")
    assert in_frames(recipe, KaldiFilterbank()) == recipe
    finer = in_frames(recipe, KaldiFilterbank(0.005))
    batches = [r.training.batch_frames for r in (recipe.teacher, recipe.student)]
    assert [r.training.batch_frames for r in (finer.teacher, finer.student)] == [
        2 * frames for frames in batches
    ]
    assert (finer.specaugment.time_width, finer.specaugment.time_warp) == (60, 10)
    assert in_frames(recipe, EspnetFilterbank(hop_length=128)).specaugment.time_width == 38


def test_a_finer_shift_halves_no_batch(tiny_data: PreparedData, tmp_path: Path) -> None:
    """Batches of equal speech: as many updates, and the card has the recipe as it was given."""
    train = read_manifest(tiny_data.folder.parent / "train" / "manifest.jsonl")
    dev = read_manifest(tiny_data.folder.parent / "dev" / "manifest.jsonl")
    splits, settings = {"train": train, "dev": dev}, PrepareSettings(frame_shift_ms=5.0)
    prepare(splits, tmp_path / "data", settings, workers=0)
    recipe = tiny_recipe("teacher.training.epochs=1", "teacher.training.log_steps=1")
    steps = {}
    for data in (tiny_data.folder, tmp_path / "data"):
        out = tmp_path / f"of-{data.parent.name}"
        train_teacher(data, recipe, out, 0, "cpu")
        steps[data] = sum(line["type"] == "step" for line in read_jsonl(out / "train.jsonl"))
        assert load_model(out).card.recipe["teacher"]["training"]["batch_frames"] == 1200
    few, many = steps[tiny_data.folder], steps[tmp_path / "data"]
    assert few <= many < 1.5 * few


def test_the_first_weights_follow_from_the_seed(tiny_data: PreparedData) -> None:
    tokenizer, section = Tokenizer.load(tiny_data.tokenizer), tiny_recipe().student.model
    first, again, other = (
        fresh_model(section, "mask-ctc", tokenizer, seed, CPU).ctc.ctc_lo.weight
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_dev_curve_ends_at_what_the_saved_model_scores(
    tiny_data: PreparedData, tmp_path: Path
) -> None:
    recipe = tiny_recipe("teacher.training.average_last=1", "teacher.training.precision=float32")
    assert train_teacher(tiny_data.folder, recipe, tmp_path / "model", 3, "cpu")
    card = load_model(tmp_path / "model").card
    assert (card.name, card.seed) == ("model", 3)
    assert card.manifest_digest == tiny_data.split("train").manifest_digest
    *_, last = read_jsonl(tmp_path / "model" / "train.jsonl")
    settings = SearchSettings(mode="ctc")
    decode_split(
        tmp_path / "model", tiny_data.folder, "dev", tmp_path / "out", settings, Runtime("cpu")
    )
    score = read_json(tmp_path / "out" / "score.json")
    assert isinstance(score, dict)
    assert last["dev_cer"] == pytest.approx(score["cer"]["rate"])
    assert last["dev_wer"] == pytest.approx(score["wer"]["rate"])
