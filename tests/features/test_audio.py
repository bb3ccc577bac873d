from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from kdpipe.errors import DataError, InputNotFoundError
from kdpipe.features.audio import read_audio


def tone(
    rate: int, seconds: float, hertz: float = 440.0
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


def test_reads_samples_as_they_are(tmp_path: Path) -> None:
    samples = np.array([0, 1, -32768, 32767], dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 16000)
    expected = torch.from_numpy(samples.astype(np.float32) / 32768)
    torch.testing.assert_close(read_audio(tmp_path / "a.wav"), expected, rtol=0, atol=0)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_any_rate_becomes_16_khz(tmp_path: Path, rate: int, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(rate, 1.0), rate)
    waveform = read_audio(path)
    assert len(waveform) == 16000
    expected = torch.from_numpy(tone(16000, 1.0)).float()
    middle = slice(2000, 14000)
    error = (waveform[middle] - expected[middle]).abs().max()
    assert error < (0.05 if suffix == "ogg" else 0.01)


def test_channels_are_mixed_or_the_first_is_taken(tmp_path: Path) -> None:
    both = np.stack([tone(16000, 0.1), np.zeros(1600)], axis=1)
    soundfile.write(tmp_path / "a.wav", both, 16000, subtype="FLOAT")
    first = read_audio(tmp_path / "a.wav", channel="first")
    torch.testing.assert_close(first, torch.from_numpy(both[:, 0]).float())
    torch.testing.assert_close(read_audio(tmp_path / "a.wav"), first / 2)


def test_a_part_is_read_by_offset_and_duration(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(8000, 1.0), 8000, subtype="FLOAT")
    whole = read_audio(tmp_path / "a.wav")
    part = read_audio(tmp_path / "a.wav", offset=0.25, duration=0.5)
    assert len(part) == 8000
    torch.testing.assert_close(part[100:-100], whole[4100:11900], rtol=0, atol=1e-3)
    assert len(read_audio(tmp_path / "a.wav", offset=0.75, duration=0.5)) == 4000
    assert len(read_audio(tmp_path / "a.wav", offset=2.0, duration=0.5)) == 0


@pytest.mark.parametrize("samples", [0, 2**36 - 1])
def test_a_flac_that_does_not_say_its_length_is_named(tmp_path: Path, samples: int) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(16000, 0.5), 16000)
    content = bytearray(path.read_bytes())
    stated = int.from_bytes(content[18:26], "big") >> 36 << 36 | samples
    content[18:26] = stated.to_bytes(8, "big")
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.flac"):
        read_audio(path)


def test_empty_audio_is_an_empty_waveform(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(0), 44100)
    assert read_audio(tmp_path / "a.wav").shape == (0,)


def test_missing_and_undecodable_files_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "noise.wav").write_bytes(b"not audio")
    (tmp_path / "empty.flac").touch()
    for missing in ("none.wav", "."):
        with pytest.raises(InputNotFoundError):
            read_audio(tmp_path / missing)
    for name in ("noise.wav", "empty.flac"):
        with pytest.raises(DataError, match="cannot be decoded"):
            read_audio(tmp_path / name)
