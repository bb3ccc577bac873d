"""Model directories whose parts do not fit, and those that claim what cannot be."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

from kdpipe.checkpoint import load_model, read_card
from kdpipe.corpus.manifest import read_manifest
from kdpipe.errors import InputNotFoundError, ModelFormatError
from kdpipe.features.cmvn import Cmvn
from kdpipe.features.espnet_filterbank import EspnetFilterbank
from kdpipe.features.prepared import PreparedData
from kdpipe.stages.prepare import PrepareSettings, prepare
from kdpipe.testing import random_model, tiny_manifest


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    folder = tmp_path_factory.mktemp("data")
    utterances = read_manifest(tiny_manifest(folder / "train", 4, 0))
    prepare({"train": utterances}, folder / "prepared", PrepareSettings(), workers=0)
    return PreparedData.open(folder / "prepared")


@pytest.fixture
def model(data: PreparedData, tmp_path: Path) -> Path:
    return random_model(data, tmp_path / "model", "mask-ctc")


def rewrite(model: Path, section: str, changes: Mapping[str, Any], anew: bool = False) -> None:
    table = tomllib.loads((model / "model.toml").read_text(encoding="utf-8"))
    table[section] = {**({} if anew else table[section]), **changes}
    (model / "model.toml").write_text(tomli_w.dumps(table), encoding="utf-8")


@pytest.mark.parametrize("value", ["[" * 100_000, "9" * 5000])
def test_a_card_that_no_reader_takes_is_named(value: str, tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text(f"seed = {value}\n", encoding="utf-8")
    with pytest.raises(ModelFormatError, match=r"model\.toml: not TOML"):
        read_card(tmp_path)


def test_a_training_that_is_not_finished_is_called_that(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="Give a folder"):
        read_card(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputNotFoundError, match="training is not finished"):
        read_card(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 400_000},
        {"encoder_layers": 1000},
        {"decoder_layers": 1000},
        {"inner": 2**40},
        {"kernel": 2**40 + 1},
    ],
)
def test_sizes_that_the_weights_cannot_fill_are_never_built(
    changes: dict[str, int], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(model, "sizes", changes)
    monkeypatch.setattr("kdpipe.checkpoint.build_model", lambda _: pytest.fail("built"))
    with pytest.raises(ModelFormatError, match=r"weights do not fit model\.toml"):
        load_model(model)


@pytest.mark.parametrize("width", [79, 1])
def test_a_normalisation_of_another_width_does_not_fit(width: int, model: Path) -> None:
    Cmvn(torch.zeros(width), torch.ones(width)).save(model / "cmvn.safetensors")
    with pytest.raises(ModelFormatError, match=rf"cmvn.*{width}.*80"):
        load_model(model)


def test_features_of_another_width_do_not_fit(model: Path) -> None:
    rewrite(model, "features", EspnetFilterbank(n_mels=40).describe(), anew=True)
    with pytest.raises(ModelFormatError, match=r"model\.toml: features of 40 bands .* of 80"):
        load_model(model)
