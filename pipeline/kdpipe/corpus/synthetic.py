"""The demo's corpus: sentences of a grammar spoken by espeak-ng, with noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from kdpipe.corpus.espeak import Voice, require_espeak, speak
from kdpipe.corpus.grammar import make_sentence
from kdpipe.corpus.manifest import write_manifest
from kdpipe.corpus.utterance import Utterance
from kdpipe.errors import DataError, OutputConflictError
from kdpipe.files import read_json, write_json
from kdpipe.parallel import WorkerPool
from kdpipe.progress import progress_bar

__all__ = ["synthesise"]

SAMPLE_RATE = 16000
# 22050 / 16000 in lowest terms: blocks of 441 samples become blocks of 320.
RATIO_IN, RATIO_OUT = 441, 320
CHUNK = 16
RECORD = "corpus.json"
HELD_OUT_VARIANTS = 8
SPEAKERS_OF_A_VARIANT = 2
# Faster, some sentences would have more characters than CTC has encoder frames (40 ms).
WORDS_PER_MINUTE = (115, 171)
SNR_DB = (5.0, 25.0)
LEVEL_DB = (-30.0, -18.0)
SILENCE_SECONDS = (0.05, 0.25)
# Spectrum of the noise: power falls as f^-slope, from white to almost brown.
NOISE_SLOPE = (0.0, 1.8)
LOWEST_HZ = 40.0
ACCENTS = ("en-us", "en", "en-gb-scotland", "en-029", "en-gb-x-rp", "en-gb-x-gbcwmd", "en-us-nyc")
# Variants that sound like people (espeak-ng has robots and whisperers too), without the hasty and
# the breathy ones: espeak-ng computes breath from memory that it has not set, never twice the same.
VARIANTS = (
    "Alex Andy Annie Denis Diogo Gene Henrique Hugo Jacky Lee Marco Mario Michael Mike "
    "Nguyen adam aunty belinda benjamin boris david ed edward f1 f4 grandma grandpa "
    "gustave iven3 john kaukovalta linda m1 m2 m3 m4 m5 m6 m7 m8 marcelo max michel "
    "miguel mike2 norbert pablo paul quincy rob robert shelby steph travis zac"
)


@dataclass(frozen=True)
class _Speaker:
    name: str
    voice: Voice


@dataclass(frozen=True)
class _Job:
    """One utterance to speak; the seed decides its noise, level and silences."""

    path: Path
    text: str
    speaker: _Speaker
    snr: tuple[float, float]
    seed: tuple[int, ...]


def synthesise(
    out: Path,
    train: int = 1000,
    dev: int = 100,
    test: int = 100,
    seed: int = 0,
    snr: tuple[float, float] = SNR_DB,
    workers: int = 2,
) -> bool:
    """Write `out`/{train,dev,test}.jsonl and their utterances as 16 kHz FLAC.

    `train`, `dev` and `test` are numbers of utterances, 3 s each on average; `snr` the range
    (dB) that every utterance draws its noise from. No voice variant and no sentence is in two
    splits. Everything follows from the arguments. Files that an interrupted run finished are
    kept; returns False where all was there.

    Raises `DependencyError` without espeakng-loader, `OutputConflictError` where `out` was made
    with other arguments.
    """
    sizes = {"train": train, "dev": dev, "test": test}
    settings = {**sizes, "seed": seed, "snr": list(snr)}
    if _is_complete(out, settings):
        return False
    require_espeak()
    write_json(out / RECORD, {"complete": False, "settings": settings})
    with WorkerPool(workers) as pool, progress_bar(float(sum(sizes.values())), "synthesise") as bar:
        for name, jobs in _plan(out, sizes, seed, snr).items():
            utterances: list[Utterance] = []
            for made in pool.map(_speak_jobs, _chunks(jobs)):
                utterances += made
                bar.update(len(made))
            write_manifest(out / f"{name}.jsonl", utterances)
    write_json(out / RECORD, {"complete": True, "settings": settings})
    return True


def _is_complete(out: Path, settings: Mapping[str, object]) -> bool:
    path = out / RECORD
    if not path.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise OutputConflictError(out, (), "holds files that are no synthetic corpus")
        return False
    record = read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
        raise DataError(str(path), "not a corpus's record", "Remove the folder")
    old = record["settings"]
    changes = [f"{k}: {old.get(k)} -> {v}" for k, v in settings.items() if old.get(k) != v]
    if changes:
        raise OutputConflictError(out, changes)
    return bool(record["complete"])


def _plan(
    out: Path, sizes: Mapping[str, int], seed: int, snr: tuple[float, float]
) -> dict[str, list[_Job]]:
    """What is said by whom, split by split."""
    generator = np.random.default_rng(seed)
    voices = _split_speakers(generator)
    said: set[str] = set()
    jobs: dict[str, list[_Job]] = {}
    for number, (name, size) in enumerate(sizes.items()):
        jobs[name] = []
        for index in range(size):
            speaker = voices[name][index % len(voices[name])]
            path = out / name / f"{speaker.name}-{index:05d}.flac"
            text = _new_sentence(generator, said)
            jobs[name].append(_Job(path, text, speaker, snr, (seed, number, index)))
    return jobs


def _new_sentence(generator: np.random.Generator, said: set[str]) -> str:
    while (text := make_sentence(generator)) in said:
        pass
    said.add(text)
    return text


def _split_speakers(generator: np.random.Generator) -> dict[str, list[_Speaker]]:
    """Speakers of every split; the variants behind them are in one split alone."""
    variants = [str(variant) for variant in generator.permutation(VARIANTS.split())]
    shares = {
        "train": variants[2 * HELD_OUT_VARIANTS :],
        "dev": variants[:HELD_OUT_VARIANTS],
        "test": variants[HELD_OUT_VARIANTS : 2 * HELD_OUT_VARIANTS],
    }
    return {
        name: [_make_speaker(generator, v) for _ in range(SPEAKERS_OF_A_VARIANT) for v in share]
        for name, share in shares.items()
    }


def _make_speaker(generator: np.random.Generator, variant: str) -> _Speaker:
    accent = ACCENTS[generator.integers(len(ACCENTS))]
    voice = Voice(
        f"{accent}+{variant}",
        words_per_minute=int(generator.integers(*WORDS_PER_MINUTE)),
        pitch=int(generator.integers(25, 76)),
        pitch_range=int(generator.integers(25, 76)),
    )
    return _Speaker(f"{variant}-{accent}-{voice.words_per_minute}-{voice.pitch}", voice)


def _chunks(jobs: Sequence[_Job]) -> list[Sequence[_Job]]:
    return [jobs[start : start + CHUNK] for start in range(0, len(jobs), CHUNK)]


def _speak_jobs(jobs: Sequence[_Job]) -> list[Utterance]:
    return [_speak_job(job) for job in jobs]


def _speak_job(job: _Job) -> Utterance:
    if not job.path.is_file():
        _write_flac(job.path, _render(job))
    duration = float(soundfile.info(str(job.path)).duration)
    return Utterance(job.path.stem, job.path.absolute(), duration, job.text, job.speaker.name)


def _write_flac(path: Path, samples: NDArray[np.float64]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    soundfile.write(str(temporary), samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    temporary.replace(path)


def _render(job: _Job) -> NDArray[np.float64]:
    """Speech between two silences, noise over all of it, at a level of its own."""
    generator = np.random.default_rng(job.seed)
    speech = _to_16_khz(speak(job.text.lower(), job.speaker.voice) / 32768.0)
    before, after = (int(generator.uniform(*SILENCE_SECONDS) * SAMPLE_RATE) for _ in range(2))
    noise = _coloured_noise(len(speech) + before + after, generator)
    ratio = 10 ** (generator.uniform(*job.snr) / 20)
    mixed = np.pad(speech / _rms(speech), (before, after)) + noise / _rms(noise) / ratio
    mixed *= 10 ** (generator.uniform(*LEVEL_DB) / 20)
    return mixed / max(1.0, float(np.abs(mixed).max()) / 0.99)


def _rms(samples: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(samples**2)))


def _to_16_khz(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Resample 22050 Hz by cutting the spectrum at 8 kHz, and below 40 Hz."""
    blocks = _fast_size(-(-len(samples) // RATIO_IN))
    spectrum = np.fft.rfft(samples, blocks * RATIO_IN)[: blocks * RATIO_OUT // 2 + 1]
    # Some voices come with an offset.
    spectrum[: int(LOWEST_HZ * blocks * RATIO_OUT / SAMPLE_RATE)] = 0
    resampled = np.fft.irfft(spectrum, blocks * RATIO_OUT) * (RATIO_OUT / RATIO_IN)
    return resampled[: len(samples) * RATIO_OUT // RATIO_IN]


def _coloured_noise(length: int, generator: np.random.Generator) -> NDArray[np.float64]:
    size = _fast_size(length)
    spectrum = np.fft.rfft(generator.standard_normal(size))
    frequency = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), LOWEST_HZ)
    slope = generator.uniform(*NOISE_SLOPE)
    return np.fft.irfft(spectrum * frequency ** (-slope / 2), size)[:length]


def _fast_size(size: int) -> int:
    """A size not below this one that FFTs take quickly: at most four bits, then zeros."""
    step = 1 << max(size.bit_length() - 4, 0)
    return -(-size // step) * step
