"""Published checkpoints against what their own toolkit computed on real speech."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdpipe.features.audio import read_audio
from kdpipe.features.cmvn import Cmvn, UtteranceCmvn
from kdpipe.features.espnet_filterbank import EspnetFilterbank, slaney_filters
from kdpipe.models.foreign import ForeignModel, read_espnet
from kdpipe.models.foreign.files import parse_weights

FOLDERS = ["espnet-ar-conformer", "espnet-ar-legacy", "espnet-ar-transformer", "espnet-maskctc"]
TOLERANCE = 1e-3


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request: pytest.FixtureRequest, shared: Path) -> Path:
    return shared / "golden" / str(request.param)


@pytest.fixture(scope="module")
def teacher(folder: Path) -> ForeignModel:
    return read_espnet(folder)


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[tuple[dict[str, Any], dict[str, Tensor]]]:
    records = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    pairs = []
    for record in records:
        with np.load(folder / f"{record['id']}.npz") as stored:
            pairs.append((record, {name: torch.from_numpy(stored[name]) for name in stored}))
    return pairs


def close(found: Tensor, stored: Tensor) -> bool:
    return found.shape == stored.shape and torch.allclose(found, stored, rtol=0, atol=TOLERANCE)


def raw_features(teacher: ForeignModel, normalised: Tensor) -> Tensor:
    """Undo the normalisation: the toolkit normalises in place, so its `features` are gone."""
    assert isinstance(teacher.cmvn, Cmvn)
    return normalised * teacher.cmvn.std + teacher.cmvn.mean


def test_features_and_normalisation(
    teacher: ForeignModel, expected: list[tuple[dict[str, Any], dict[str, Tensor]]], shared: Path
) -> None:
    for record, arrays in expected:
        waveform = read_audio(shared / "corpora" / "an4" / record["audio_filepath"])
        assert isinstance(teacher.filterbank, EspnetFilterbank)
        features = teacher.filterbank.log_mel(waveform)
        assert teacher.filterbank.num_frames(len(waveform)) == len(features)
        if isinstance(teacher.cmvn, Cmvn):
            assert close(features, raw_features(teacher, arrays["normalized"]))
        assert close(teacher.cmvn.apply(features), arrays["normalized"])


def test_filters_equal_those_saved_with_the_weights(folder: Path) -> None:
    weights = parse_weights((folder / "valid.acc.ave.pth").read_bytes(), "weights")
    assert torch.allclose(slaney_filters(EspnetFilterbank()), weights["frontend.logmel.melmat"])


def decoder_input(teacher: ForeignModel, record: dict[str, Any]) -> list[int]:
    if teacher.model.config.kind == "mask-ctc":
        assert record["mask_id"] == teacher.model.config.vocab_size
        return list(record["mlm_input"])
    return [teacher.model.config.vocab_size - 1, *record["reference"]]


def test_encoder_ctc_and_decoder(
    teacher: ForeignModel, expected: list[tuple[dict[str, Any], dict[str, Tensor]]]
) -> None:
    for record, arrays in expected:
        features = arrays["normalized"]
        tokens = torch.tensor([decoder_input(teacher, record)])
        with torch.inference_mode():
            encoded = teacher.model.encode(features[None], torch.tensor([len(features)]))
            ctc = teacher.model.ctc_log_probs(encoded.hidden)
            logits = teacher.model.decoder_logits(encoded, tokens, torch.tensor([tokens.shape[1]]))
        name = "mlm_logp" if teacher.model.config.kind == "mask-ctc" else "decoder_logp"
        assert close(encoded.hidden[0], arrays["encoder_out"])
        assert close(ctc[0], arrays["ctc_logp"])
        assert close(logits[0].log_softmax(1), arrays[name])


def test_a_padded_batch_gives_the_same(
    teacher: ForeignModel, expected: list[tuple[dict[str, Any], dict[str, Tensor]]]
) -> None:
    features = [arrays["normalized"] for _, arrays in expected]
    batch = torch.nn.utils.rnn.pad_sequence(features, batch_first=True, padding_value=9.0)
    with torch.inference_mode():
        encoded = teacher.model.encode(batch, torch.tensor([len(one) for one in features]))
    for row, (_, arrays) in enumerate(expected):
        frames = int(encoded.lengths[row])
        assert close(encoded.hidden[row, :frames], arrays["encoder_out"])


def test_what_else_is_read(teacher: ForeignModel, folder: Path) -> None:
    assert teacher.name == folder.name
    assert teacher.filterbank == EspnetFilterbank()
    assert not teacher.assumed_features
    assert (teacher.token_list[0], teacher.token_list[-1]) == ("<blank>", "<sos/eos>")
    assert (teacher.token_type, teacher.bpe_model) == ("char", None)
    assert not teacher.model.training
    assert isinstance(teacher.cmvn, UtteranceCmvn) == (folder.name == "espnet-ar-legacy")
    assert sorted(teacher.files)[0] == "config.yaml"
