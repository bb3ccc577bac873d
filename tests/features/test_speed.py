from __future__ import annotations

import importlib

import pytest
import torch

from kdpipe.features.speed import perturb_speed, speed_id


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_equals_torchaudio(factor: float) -> None:
    waveform = torch.randn(16000)
    theirs, _ = importlib.import_module("torchaudio.functional").speed(waveform, 16000, factor)
    torch.testing.assert_close(perturb_speed(waveform, factor), theirs)


@pytest.mark.parametrize("factor", [0.8, 0.95, 1.0, 1.15, 1.25])
def test_a_tone_changes_pitch_and_length_by_the_factor(factor: float) -> None:
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(16000) / 16000)
    changed = perturb_speed(tone, factor)
    assert abs(len(changed) - 16000 / factor) <= 1
    peak = torch.fft.rfft(changed, 16000 * 4).abs().argmax() / 4
    assert abs(float(peak) - 1000 * factor) < 2


def test_perturbed_ids() -> None:
    assert speed_id("a", 0.9) == "sp0.9-a"
    assert speed_id("a", 1.1) == "sp1.1-a"
    assert speed_id("a", 1.0) == "a"
