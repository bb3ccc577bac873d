"""Recipes are read strictly: what does not fit is named, with its value and the remedy."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import tomli_w

from kdpipe.config import (
    ModelSection,
    Recipe,
    apply_overrides,
    load_recipe,
    parse_table,
    recipe_names,
    to_table,
)
from kdpipe.errors import ConfigError, DataError, InputNotFoundError

MODEL = {"size": "XS", "encoder_layers": 12}


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads_and_survives_a_round_trip(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    again = parse_table(Recipe, tomllib.loads(tomli_w.dumps(to_table(recipe))), name)
    assert again == recipe


def test_the_four_recipes_are_shipped() -> None:
    assert recipe_names() == ["aishell1", "an4", "demo", "librispeech"]


@pytest.mark.parametrize("name", ["aishell1", "librispeech"])
def test_full_corpus_recipes_carry_the_papers_schedule(name: str) -> None:
    recipe = load_recipe(name)
    stages = [
        (s.epochs, s.beta_frame, s.beta_sequence, s.gamma_encoder, s.gamma_decoder)
        for s in recipe.student.stages
    ]
    assert stages == [(80, 1.0, 0.0, 0.5, 0.3), (20, 1.0, 1.0, 0.5, 0.5)]
    assert recipe.distillation.nbest == 10
    assert recipe.distillation.scale == recipe.teacher.scale == "paper"
    assert recipe.student.training.ctc_weight == 0.3
    assert recipe.student.training.average_last == 5
    assert recipe.teacher.training.ctc_weight == 0.3
    assert recipe.teacher.training.average_last == 5
    sizes = {"aishell1": ("M", "XS"), "librispeech": ("L", "S")}[name]
    assert (recipe.teacher.model.size, recipe.student.model.size) == sizes


@pytest.mark.parametrize(
    ("table", "key", "words"),
    [
        ({"sise": "XS"}, "sise", "Did you mean size"),
        ({"size": "XL"}, "size", "one of custom, L, M, S, XS"),
        ({"size": 3}, "size", "one of custom"),
        ({"size": "XS", "kernel": 30}, "kernel", "odd"),
        ({"size": "XS", "kernel": True}, "kernel", "not a whole number"),
        ({"size": "XS", "dropout": 1.5}, "dropout", "from 0 to 0.9"),
        ({"size": "XS", "dropout": float("nan")}, "dropout", "out of range"),
        ({"size": "XS", "dim": 64}, "size", "Remove them"),
        ({"size": "custom", "dim": 64}, "size", "Give all three"),
    ],
)
def test_what_does_not_fit_is_named(table: dict[str, object], key: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_table(ModelSection, table, "my.toml", "student.model.")
    assert caught.value.key == f"student.model.{key}"
    assert "my.toml" in str(caught.value)
    assert words in str(caught.value)


def test_a_temperature_needs_the_bucket() -> None:
    overrides = ["distillation.temperature=2", "distillation.tail=uniform"]
    with pytest.raises(ConfigError, match=r'tail = "uniform"') as caught:
        load_recipe("an4", overrides)
    assert (caught.value.key, caught.value.value) == ("distillation.temperature", 2.0)
    assert "bucket" in caught.value.remedy


def test_an_integer_is_a_float_where_a_float_is_wanted() -> None:
    model = parse_table(ModelSection, {**MODEL, "dropout": 0}, "here")
    assert model.dropout == 0.0
    assert isinstance(model.dropout, float)


def test_overrides_reach_into_tables_and_lists() -> None:
    recipe = load_recipe("demo", ["student.stages.0.beta_frame=0.25", "teacher.training.epochs=3"])
    assert recipe.student.stages[0].beta_frame == 0.25
    assert recipe.teacher.training.epochs == 3


def test_overrides_leave_the_table_they_were_given() -> None:
    table = {"a": {"b": 1}, "c": [1, 2]}
    assert apply_overrides(table, ["a.b=2", "c.1=word", "d=true"]) == {
        "a": {"b": 2}, "c": [1, "word"], "d": True,
    }  # fmt: skip
    assert table == {"a": {"b": 1}, "c": [1, 2]}


@pytest.mark.parametrize("override", ["novalue", "=3", "student.stages.9.epochs=1", "name.x=1"])
def test_a_bad_override_is_refused(override: str) -> None:
    with pytest.raises(ConfigError):
        load_recipe("demo", [override])


def test_a_students_epochs_are_those_of_its_stages(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"student\.training\.epochs.*student\.stages"):
        load_recipe("demo", ["student.training.epochs=3"])
    table = to_table(load_recipe("demo"))
    (tmp_path / "mine.toml").write_text(tomli_w.dumps(table))
    with pytest.raises(ConfigError, match="stages"):
        load_recipe(str(tmp_path / "mine.toml"))
    del table["student"]["training"]["epochs"]
    (tmp_path / "mine.toml").write_text(tomli_w.dumps(table))
    assert load_recipe(str(tmp_path / "mine.toml")) == load_recipe("demo")


def test_a_recipe_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="aishell1, an4, demo, librispeech"):
        load_recipe(str(tmp_path / "none.toml"))


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("name = [")
    with pytest.raises(DataError, match=r"bad\.toml: not TOML"):
        load_recipe(str(path))
