"""The second kind of features: settings, lengths, and how files name it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.errors import DataError
from kdpipe.features.espnet_filterbank import EspnetFilterbank, slaney_filters
from kdpipe.features.filterbank import KaldiFilterbank
from kdpipe.features.kinds import Filterbank, read_filterbank

SHAPES = [
    EspnetFilterbank(),
    EspnetFilterbank(512, 512, 128, 40, 80.0, 7600.0, "hamming"),
    EspnetFilterbank(400, 320, 100, 20, window="blackman", center=False),
]


def by_definition(samples: np.ndarray[Any, Any], shape: EspnetFilterbank) -> np.ndarray[Any, Any]:
    """Frame by frame with a plain DFT, for clarity."""
    if shape.center:
        samples = np.pad(samples, shape.n_fft // 2, mode="reflect")
    angle = 2 * np.pi * np.arange(shape.win_length) / shape.win_length
    windows = {
        "hann": 0.5 - 0.5 * np.cos(angle),
        "hamming": 0.54 - 0.46 * np.cos(angle),
        "blackman": 0.42 - 0.5 * np.cos(angle) + 0.08 * np.cos(2 * angle),
    }
    window = np.zeros(shape.n_fft)
    left = (shape.n_fft - shape.win_length) // 2
    window[left : left + shape.win_length] = windows[shape.window]
    filters = slaney_filters(shape).double().numpy()
    rows = []
    for start in range(0, len(samples) - shape.n_fft + 1, shape.hop_length):
        spectrum = np.fft.rfft(samples[start : start + shape.n_fft] * window)
        rows.append(np.log(np.maximum(np.abs(spectrum) ** 2 @ filters, 1e-10)))
    return np.array(rows)


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_to_the_definition(shape: EspnetFilterbank) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 4321)
    ours = shape.log_mel(torch.from_numpy(samples).float())
    expected = by_definition(samples, shape)
    assert ours.shape == (shape.num_frames(4321), shape.dim) == expected.shape
    np.testing.assert_allclose(ours.numpy(), expected, atol=2e-3)


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=25, deadline=None)
@given(samples=st.integers(0, 3000))
def test_the_number_of_frames_is_foretold(shape: EspnetFilterbank, samples: int) -> None:
    features = shape.log_mel(torch.ones(samples))
    assert features.shape == (shape.num_frames(samples), shape.dim)
    assert bool(torch.isfinite(features.half()).all())


def test_silence_is_the_floor() -> None:
    silent = EspnetFilterbank().log_mel(torch.zeros(257))
    assert silent.shape == (2, 80)
    assert torch.allclose(silent, torch.tensor(1e-10).log())


@pytest.mark.parametrize("filterbank", [*SHAPES, KaldiFilterbank(), KaldiFilterbank(0.0075)])
def test_what_files_say_gives_the_same_features(filterbank: Filterbank) -> None:
    table = {**filterbank.describe(), "channel": "mix"}
    assert read_filterbank(table, "model.toml") == filterbank


def test_frames_and_their_seconds() -> None:
    assert (KaldiFilterbank().dim, KaldiFilterbank().frame_shift_seconds) == (80, 0.01)
    assert EspnetFilterbank(hop_length=128).frame_shift_seconds == 0.008


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "mfcc"},
        {"sample_rate": 8000},
        {"window": "kaiser"},
        {"n_mels": None, "extra": 1},
        {"dither": 1.0},
    ],
)
def test_features_of_another_version_are_refused(changes: dict[str, Any]) -> None:
    table = {**EspnetFilterbank().describe(), **changes}
    with pytest.raises(DataError, match="unknown features"):
        read_filterbank(table, "model.toml")
    with pytest.raises(DataError, match="unknown features"):
        read_filterbank({**KaldiFilterbank().describe(), **changes}, "model.toml")
    with pytest.raises(DataError, match="unknown features"):
        read_filterbank({**KaldiFilterbank().describe(), "frame_shift_seconds": 0.0}, "model.toml")
