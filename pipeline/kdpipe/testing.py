"""A corpus and a recipe so small that the whole pipeline runs in a test.

Each letter is a chord of its own, so a tiny model learns to read it within seconds; nothing
here sounds like speech.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from kdpipe.checkpoint import ModelCard, save_model
from kdpipe.config import Recipe, load_recipe
from kdpipe.corpus.manifest import write_manifest
from kdpipe.corpus.utterance import Utterance
from kdpipe.features.prepared import PreparedData
from kdpipe.models.config import Kind
from kdpipe.stages.build import fresh_model
from kdpipe.text.tokenizer import Tokenizer

__all__ = ["TINY_RECIPE", "random_model", "tiny_manifest", "tiny_recipe", "tone_waveform"]

RATE = 16_000
LETTERS = "ABCDEF"
LETTER_SECONDS = 0.14
PAUSE_SECONDS = 0.05

TINY_RECIPE = [
    "teacher.model.dim=32",
    "teacher.model.heads=2",
    "teacher.model.inner=64",
    "teacher.model.encoder_layers=1",
    "teacher.model.decoder_layers=1",
    "teacher.model.kernel=7",
    "teacher.training.epochs=2",
    "teacher.training.batch_frames=1200",
    "teacher.training.warmup_steps=20",
    "teacher.training.log_steps=2",
    "student.model.dim=16",
    "student.model.heads=2",
    "student.model.inner=32",
    "student.model.encoder_layers=1",
    "student.model.decoder_layers=1",
    "student.model.kernel=7",
    "student.training.batch_frames=1200",
    "student.training.warmup_steps=20",
    "student.training.log_steps=2",
    "student.stages.0.epochs=1",
    "student.stages.1.epochs=1",
]


def tiny_recipe(*overrides: str) -> Recipe:
    """The demo recipe shrunk to seconds, with further `key=value` changes."""
    return load_recipe("demo", [*TINY_RECIPE, *overrides])


def tone_waveform(text: str, random: np.random.Generator) -> NDArray[np.float32]:
    """(samples,) 16 kHz: a chord a letter, silence for a space, a little noise."""
    pieces = [np.zeros(int(RATE * PAUSE_SECONDS))]
    for letter in text:
        seconds = LETTER_SECONDS * random.uniform(0.9, 1.1)
        time = np.arange(int(RATE * seconds)) / RATE
        pitch = 300.0 * 1.35 ** (LETTERS.find(letter) + 1)
        loud = 0.0 if letter == " " else 0.3
        chord = np.sin(2 * np.pi * pitch * time) + 0.5 * np.sin(2 * np.pi * 2.1 * pitch * time)
        pieces += [loud * chord, np.zeros(int(RATE * PAUSE_SECONDS))]
    waveform = np.concatenate(pieces)
    return (waveform + 0.003 * random.standard_normal(len(waveform))).astype(np.float32)


def tiny_manifest(
    folder: Path, utterances: int, seed: int, words: tuple[int, int] = (1, 2)
) -> Path:
    """Write `utterances` chord utterances and their manifest into `folder`.

    Each has a number of words drawn from `words` (ends included).
    """
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number in range(utterances):
        text = _random_text(random, words)
        waveform = tone_waveform(text, random)
        path = folder / f"{folder.name}-{number:03d}.wav"
        soundfile.write(path, waveform, RATE, subtype="PCM_16")
        written.append(Utterance(path.stem, path, len(waveform) / RATE, text, f"s{number % 3}"))
    manifest = folder / "manifest.jsonl"
    write_manifest(manifest, written)
    return manifest


def _random_text(random: np.random.Generator, words: tuple[int, int]) -> str:
    spoken: Sequence[str] = [
        "".join(random.choice(list(LETTERS), size=random.integers(2, 5)))
        for _ in range(random.integers(words[0], words[1] + 1))
    ]
    return " ".join(spoken)


def random_model(prepared: PreparedData, out: Path, kind: Kind, seed: int = 0) -> Path:
    """A model directory with random weights, sharp enough that posteriors differ by frame."""
    tokenizer = Tokenizer.load(prepared.tokenizer)
    recipe = tiny_recipe()
    section = recipe.teacher.model if kind == "ar" else recipe.student.model
    cpu = torch.device("cpu")
    model = fresh_model(section, kind, tokenizer, seed, cpu, prepared.filterbank.dim)
    with torch.no_grad():
        model.ctc.ctc_lo.weight *= 4.0
    card = ModelCard(
        name=out.name,
        sizes=model.config,
        tokenizer_fingerprint=tokenizer.fingerprint,
        feature_type=prepared.feature_type,
        feature_digest=prepared.feature_digest,
        manifest_digest="",
        seed=seed,
        kdpipe_version="test",
        features=prepared.settings["features"],
    )
    save_model(out, card, model.state_dict(), prepared.tokenizer, prepared.cmvn)
    return out
