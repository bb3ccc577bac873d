"""What a model says of its features, and what is made of models that say less."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from kdpipe.checkpoint import load_model
from kdpipe.errors import DataError, MismatchError
from kdpipe.features.filterbank import KaldiFilterbank
from kdpipe.features.prepared import PreparedData
from kdpipe.stages.agreement import (
    require_same_features,
    require_same_filterbank,
    require_same_tokenizer,
)
from kdpipe.testing import random_model


@pytest.fixture
def model(tiny_data: PreparedData, tmp_path: Path) -> Path:
    return random_model(tiny_data, tmp_path / "model", "ar")


def rewrite(model: Path, **changes: Any) -> None:
    table = tomllib.loads((model / "model.toml").read_text(encoding="utf-8"))
    (model / "model.toml").write_text(tomli_w.dumps({**table, **changes}), encoding="utf-8")


def test_a_model_agrees_with_its_own_data(tiny_data: PreparedData, model: Path) -> None:
    bundle = load_model(model)
    assert bundle.filterbank == tiny_data.filterbank == KaldiFilterbank()
    require_same_tokenizer(bundle, tiny_data)
    require_same_features(bundle, tiny_data)


def test_models_older_than_the_table_of_features(tiny_data: PreparedData, model: Path) -> None:
    rewrite(model, features={})
    bundle = load_model(model)
    assert bundle.filterbank == KaldiFilterbank()
    require_same_features(bundle, tiny_data)


def test_models_newer_than_this_version(model: Path) -> None:
    rewrite(model, features={"kind": "learnt", "channel": "mix"})
    with pytest.raises(DataError, match=r"model\.toml: unknown features .*learnt"):
        _ = load_model(model).filterbank


def test_another_normalisation_matters_to_a_dump_alone(
    tiny_data: PreparedData, model: Path
) -> None:
    rewrite(model, feature_digest="another")
    bundle = load_model(model)
    require_same_filterbank(bundle, tiny_data)
    with pytest.raises(MismatchError, match="normalisation"):
        require_same_features(bundle, tiny_data)


def test_the_remedy_names_the_channel_that_like_does_not_take(
    tiny_data: PreparedData, model: Path
) -> None:
    remedies = []
    for channel in ("mix", "first"):
        features = {**tiny_data.settings["features"], "channel": channel}
        rewrite(model, feature_digest="another", features=features)
        with pytest.raises(MismatchError) as refusal:
            require_same_features(load_model(model), tiny_data)
        remedies.append(refusal.value.remedy)
    assert f"--like {model}`" in remedies[0]
    assert f"--like {model} --channel first`" in remedies[1]
