from __future__ import annotations

import numpy as np
import pytest
import torch

from kdpipe.errors import ConfigError
from kdpipe.features.filterbank import KaldiFilterbank


def mel(hertz: float) -> float:
    return float(1127.0 * np.log(1.0 + hertz / 700.0))


def reference_log_mel(
    samples: np.ndarray[tuple[int], np.dtype[np.float64]], shift: int = 160
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Kaldi's compute-fbank-feats, frame by frame."""
    edges = np.linspace(mel(20.0), mel(8000.0), 82)
    bins = np.array([mel(k * 16000 / 512) for k in range(257)])
    rise = (bins - edges[:80, None]) / (edges[1:81] - edges[:80])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:81])[:, None]
    filters = np.maximum(0, np.minimum(rise, fall))
    filters[:, 256] = 0  # Kaldi leaves the Nyquist bin out.
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    rows = []
    for start in range(0, len(samples) - 399, shift):
        frame = samples[start : start + 400] * 32768
        frame = frame - frame.mean()
        frame = frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])
        power = np.abs(np.fft.rfft(frame * window, 512)) ** 2
        rows.append(np.log(np.maximum(filters @ power, np.finfo(np.float32).eps)))
    return np.array(rows)


@pytest.mark.parametrize("shift", [160, 120, 80, 161])
def test_equals_kaldi_written_plainly(shift: int) -> None:
    bank = KaldiFilterbank(shift / 16000)
    samples = np.random.default_rng(0).normal(0, 0.1, 4000)
    ours = bank.log_mel(torch.from_numpy(samples).float())
    assert len(ours) == bank.num_frames(4000)
    np.testing.assert_allclose(ours.numpy(), reference_log_mel(samples, shift), atol=2e-3)


def test_every_whole_shift_gives_its_frames() -> None:
    waveform = torch.randn(2000)
    for shift in range(40, 321):
        bank = KaldiFilterbank(shift / 16000)
        assert bank.log_mel(waveform).shape == (bank.num_frames(2000), 80)


@pytest.mark.parametrize("seconds", [0.0, -0.01, 0.002, 0.0201, 0.01003, 10.0])
def test_other_shifts_are_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match="frame_shift_seconds"):
        KaldiFilterbank(seconds)


@pytest.mark.parametrize("shift", [160, 120])
def test_long_audio_in_blocks_equals_any_part_of_it(shift: int) -> None:
    bank = KaldiFilterbank(shift / 16000)
    waveform = torch.randn(shift * 700 + 333)
    whole = bank.log_mel(waveform)
    for start in (0, 299, 300, 650):
        part = bank.log_mel(waveform[start * shift : (start + 19) * shift + 400])
        # In the lowest bands the FFT's rounding shows: kernels differ by the rows of a batch.
        torch.testing.assert_close(part, whole[start : start + 20], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "samples", [0, 1, 399, 400, 559, 560, 16000, 160 * 300 + 239, 160 * 300 + 240]
)
def test_only_whole_windows_are_frames(samples: int) -> None:
    features = KaldiFilterbank().log_mel(torch.randn(samples))
    assert features.shape == (KaldiFilterbank().num_frames(samples), 80)
    assert features.dtype == torch.float32


def test_digital_silence_is_finite_in_half_precision() -> None:
    assert bool(torch.isfinite(KaldiFilterbank().log_mel(torch.zeros(1600)).half()).all())


def test_a_tone_is_loudest_in_its_band() -> None:
    time = torch.arange(16000) / 16000
    loudest = (
        KaldiFilterbank().log_mel(0.3 * torch.sin(2 * torch.pi * 1000 * time)).mean(0).argmax()
    )
    edges = np.linspace(mel(20.0), mel(8000.0), 82)
    assert edges[loudest] < mel(1000.0) < edges[loudest + 2]
