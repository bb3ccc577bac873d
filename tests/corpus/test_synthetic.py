from __future__ import annotations

import builtins
import locale
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kdpipe.corpus import synthetic
from kdpipe.corpus.espeak import ESPEAK_RATE, Voice, speak
from kdpipe.corpus.grammar import make_sentence, vocabulary
from kdpipe.corpus.manifest import read_manifest
from kdpipe.corpus.synthetic import ACCENTS, VARIANTS, synthesise
from kdpipe.corpus.utterance import Utterance
from kdpipe.errors import DataError, DependencyError, OutputConflictError

SPLITS = ("train", "dev", "test")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus") / "out"
    assert synthesise(out, train=60, dev=10, test=10, workers=1)
    return out


def read_corpus(folder: Path) -> dict[str, list[Utterance]]:
    return {name: read_manifest(folder / f"{name}.jsonl") for name in SPLITS}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_grammar_is_not_trivial() -> None:
    generator = np.random.default_rng(0)
    sentences = [make_sentence(generator) for _ in range(2000)]
    assert len(vocabulary()) >= 180
    assert {word for sentence in sentences for word in sentence.split()} == vocabulary()
    assert len(set(sentences)) > 1900
    assert all(5 <= len(sentence.split()) <= 11 for sentence in sentences)


def test_every_voice_speaks() -> None:
    lengths = set()
    for number, variant in enumerate(VARIANTS.split()):
        accent = ACCENTS[number % len(ACCENTS)]
        samples = speak("carry the lamp", Voice(f"{accent}+{variant}"))
        lengths.add(len(samples))
        assert 0.5 < len(samples) / ESPEAK_RATE < 2.5, variant
        assert 300 < np.abs(samples).max() < 32767, variant
    assert len(lengths) > len(VARIANTS.split()) / 2


def test_rate_and_pitch_are_heard() -> None:
    slow, fast = (speak("carry the lamp", Voice("en-us", rate)) for rate in (140, 210))
    assert len(slow) > 1.2 * len(fast)
    low, high = (speak("carry the lamp", Voice("en-us", pitch=p)) for p in (20, 80))
    assert fundamental(high) > 1.3 * fundamental(low)


def fundamental(samples: np.ndarray[tuple[int], np.dtype[np.int16]]) -> float:
    """Hertz of the strongest repetition between 60 and 400 Hz, in the loudest 50 ms."""
    wave = samples.astype(np.float64)
    start = np.argmax(np.convolve(wave**2, np.ones(2205), "valid"))
    part = wave[start : start + 2205]
    repetition = np.correlate(part, part, "full")[len(part) - 1 :]
    lags = np.arange(ESPEAK_RATE // 400, ESPEAK_RATE // 60)
    return float(ESPEAK_RATE / lags[np.argmax(repetition[lags])])


def test_speech_does_not_depend_on_what_was_said_before() -> None:
    voice = Voice("en-us+klatt4")
    first = speak("turn the lights off", voice)
    speak("find seven apples", Voice("en+f2"))
    np.testing.assert_array_equal(speak("turn the lights off", voice), first)


def test_the_locale_is_left_alone() -> None:
    before = locale.setlocale(locale.LC_ALL)
    speak("ten", Voice("en-us"))
    assert locale.setlocale(locale.LC_ALL) == before


def test_it_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    speak("ten", Voice("en-us"))
    with pytest.raises(DataError, match="no such voice"):
        speak("ten", Voice("martian"))
    assert capfd.readouterr() == ("", "")


def test_without_espeak_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = builtins.__import__

    def without(name: str, *arguments: object, **options: object) -> object:
        if name == "espeakng_loader":
            raise ImportError(name)
        return whole(name, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DependencyError, match=r"'\.\[demo\]'"):
        synthesise(tmp_path / "out", 1, 1, 1, workers=1)


def test_splits_share_no_voice_and_no_sentence(corpus: Path) -> None:
    found = read_corpus(corpus)
    assert [len(found[name]) for name in SPLITS] == [60, 10, 10]
    voices = [{str(u.speaker).split("-")[0] for u in found[name]} for name in SPLITS]
    assert not voices[0] & voices[1] | voices[0] & voices[2] | voices[1] & voices[2]
    everything = [u for name in SPLITS for u in found[name]]
    assert len({u.text for u in everything}) == len({u.id for u in everything}) == 80


def test_recordings_are_sane_by_numbers(corpus: Path) -> None:
    for utterances in read_corpus(corpus).values():
        for utterance in utterances:
            samples, rate = soundfile.read(utterance.audio)
            assert rate == 16000
            assert len(samples) / rate == pytest.approx(utterance.duration)
            seconds_a_word = utterance.duration / len(str(utterance.text).split())
            assert 0.15 < seconds_a_word < 0.8
            level = 10 * np.log10(np.mean(samples**2))
            assert -32 < level < -15
            assert np.abs(samples).max() <= 0.99
            assert abs(samples.mean()) < 0.01
            # Speech comes and goes: some 100 ms are much louder than others.
            power = np.square(samples[: len(samples) // 1600 * 1600]).reshape(-1, 1600).mean(1)
            assert power.max() > 3 * power.min()


def test_noise_follows_the_ratio_asked_for(tmp_path: Path) -> None:
    for ratio in (0.0, 30.0):
        synthesise(tmp_path / str(ratio), 8, 1, 1, snr=(ratio, ratio), workers=1)
        found = read_manifest(tmp_path / str(ratio) / "train.jsonl")
        parts = [soundfile.read(u.audio)[0] for u in found]
        # The first 50 ms are silence but for the noise.
        shares = [np.mean(p[:800] ** 2) / np.mean(p**2) for p in parts]
        measured = 10 * np.log10(1 / np.mean(shares) - 1)
        assert abs(measured - ratio) < 4


def test_the_same_arguments_give_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    synthesise(tmp_path / "again", train=60, dev=10, test=10, workers=2)
    assert contents(tmp_path / "again") == contents(corpus)
    synthesise(tmp_path / "other", train=2, dev=1, test=1, seed=1, workers=1)
    first = read_corpus(corpus)["train"][0]
    assert read_corpus(tmp_path / "other")["train"][0].text != first.text


def test_complete_changed_and_foreign_folders(corpus: Path, tmp_path: Path) -> None:
    before = contents(corpus)
    assert not synthesise(corpus, train=60, dev=10, test=10, workers=1)
    assert contents(corpus) == before
    with pytest.raises(OutputConflictError, match="train: 60 -> 61"):
        synthesise(corpus, train=61, dev=10, test=10, workers=1)
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(OutputConflictError, match="no synthetic corpus"):
        synthesise(tmp_path, train=1, dev=1, test=1, workers=1)


def test_interrupted_it_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthesise(tmp_path / "whole", 20, 1, 1, workers=1)
    write = synthetic._write_flac
    written: list[Path] = []

    def limited(path: Path, samples: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
        if len(written) == 12:
            raise KeyboardInterrupt
        written.append(path)
        write(path, samples)

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "_write_flac", limited)
        with pytest.raises(KeyboardInterrupt):
            synthesise(tmp_path / "out", 20, 1, 1, workers=1)
    kept = written[0].stat().st_mtime_ns
    assert synthesise(tmp_path / "out", 20, 1, 1, workers=1)
    assert written[0].stat().st_mtime_ns == kept
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
