from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from kdpipe.errors import DataError, InputNotFoundError
from kdpipe.features.cmvn import AnyCmvn, Cmvn, UtteranceCmvn, load_cmvn


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def from_frames(frames: torch.Tensor) -> Cmvn:
    wide = frames.double()
    return Cmvn.from_sums(len(frames), wide.sum(0), wide.square().sum(0))


def test_normalised_training_data_has_mean_0_and_deviation_1() -> None:
    frames = torch.randn(500, 80) * torch.rand(80) * 5 + torch.randn(80) * 10
    normalised = from_frames(frames).apply(frames)
    torch.testing.assert_close(normalised.mean(0), torch.zeros(80), rtol=0, atol=1e-4)
    torch.testing.assert_close(normalised.std(0, correction=0), torch.ones(80), rtol=0, atol=1e-4)


def test_batches_and_half_precision_keep_their_shape_and_type() -> None:
    cmvn = from_frames(torch.randn(50, 80))
    assert cmvn.apply(torch.randn(2, 7, 80)).shape == (2, 7, 80)
    assert cmvn.apply(torch.randn(7, 80).half()).dtype == torch.float16


def test_a_constant_band_is_not_blown_up() -> None:
    frames = torch.randn(50, 80)
    frames[:, 3] = -15.94
    normalised = from_frames(frames).apply(frames + 1e-3)
    assert normalised[:, 3].abs().max() < 1


def test_saved_and_loaded_are_equal(tmp_path: Path) -> None:
    cmvn = from_frames(torch.randn(50, 80))
    cmvn.save(tmp_path / "cmvn.safetensors")
    loaded = load_cmvn(tmp_path / "cmvn.safetensors")
    assert isinstance(loaded, Cmvn)
    assert torch.equal(loaded.mean, cmvn.mean)
    assert torch.equal(loaded.std, cmvn.std)
    assert loaded.digest() == cmvn.digest()
    assert loaded.digest() != from_frames(torch.randn(50, 80)).digest()


def test_missing_damaged_and_unusable_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cmvn.safetensors"
    with pytest.raises(InputNotFoundError):
        load_cmvn(path)
    for content in (
        b"no safetensors",
        save({"mean": torch.zeros(80)}),
        save({"mean": torch.zeros(80), "std": torch.zeros(80)}),
        save({"mean": torch.full((80,), torch.nan), "std": torch.ones(80)}),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError):
            load_cmvn(path)


def test_utterance_cmvn_takes_out_what_an_utterance_has() -> None:
    features = torch.randn(50, 3) * 4 + 1
    centred = UtteranceCmvn().apply(features)
    assert torch.allclose(centred.mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(centred.std(0), features.std(0))
    scaled = UtteranceCmvn(variance=True).apply(features)
    assert torch.allclose(scaled.square().mean(0), torch.ones(3), atol=1e-5)
    assert not UtteranceCmvn(variance=True).apply(torch.full((5, 3), -23.0)).any()
    assert UtteranceCmvn().apply(torch.zeros(0, 80)).shape == (0, 80)


@pytest.mark.parametrize(
    "cmvn", [UtteranceCmvn(), UtteranceCmvn(True), from_frames(torch.randn(9, 3))]
)
def test_arrays_and_tensors_are_treated_alike(cmvn: AnyCmvn) -> None:
    features = torch.randn(20, 3) * 2 - 5
    found = torch.from_numpy(cmvn.apply_array(features.numpy()))
    torch.testing.assert_close(found, cmvn.apply(features), rtol=1e-5, atol=1e-5)


def test_utterance_cmvn_is_kept_by_its_file(tmp_path: Path) -> None:
    kinds = [UtteranceCmvn(), UtteranceCmvn(True)]
    for cmvn in kinds:
        cmvn.save(tmp_path / "cmvn.safetensors")
        assert load_cmvn(tmp_path / "cmvn.safetensors") == cmvn
    assert len({cmvn.digest() for cmvn in kinds}) == len({cmvn.describe() for cmvn in kinds}) == 2
