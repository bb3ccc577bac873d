from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from kdpipe.corpus.manifest import write_manifest
from kdpipe.corpus.utterance import Utterance
from kdpipe.errors import OutputConflictError, TooManyRejectedError
from kdpipe_cli.prepare import command


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(a) for a in (*arguments, "--workers", "1")])


def make_speech(folder: Path, names: Sequence[str]) -> list[Utterance]:
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        soundfile.write(folder / f"{name}.wav", generator.normal(0, 0.1, 16000), 16000)
    return [Utterance(name, folder / f"{name}.wav", 1.0, "ONE TWO", "s") for name in names]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "speech" / "train.jsonl"
    write_manifest(path, make_speech(path.parent, ["a", "b", "c"]))
    return path


def test_manifests_to_prepared_data(manifest: Path, tmp_path: Path) -> None:
    splits = ("--train", manifest, "--dev", manifest, "--speed", "0.9,1", "--out", tmp_path / "o")
    done = call(*splits)
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[1] == ["train", "6", "0.00", "0", "0"]
    assert rows[2] == ["dev", "3", "0.00", "0", "0"]
    again = call(*splits, "--json", "--seed", "3", "--device", "cpu")
    assert "already complete" in again.stderr
    assert json.loads(again.stdout)["splits"]["train"]["utterances"] == 6
    changed = call(*splits, "--channel", "first")
    assert isinstance(changed.exception, OutputConflictError)


def test_a_corpus_by_its_layout(manifest: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "train"
    folder.mkdir(parents=True)
    audio = manifest.parent / "a.wav"
    (folder / "wav.scp").write_text(f"a {audio}\n", encoding="utf-8")
    (folder / "text").write_text("a one\n", encoding="utf-8")
    done = call("--from", "kaldi", folder, "--text-case", "upper", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert '"ONE"' in (tmp_path / "out/train/utterances.jsonl").read_text(encoding="utf-8")


def test_too_many_rejected(manifest: Path, tmp_path: Path) -> None:
    (manifest.parent / "b.wav").unlink()
    options = ("--train", manifest, "--out", tmp_path / "out")
    assert isinstance(call(*options).exception, TooManyRejectedError)
    assert call(*options, "--max-rejected", "0.5").exit_code == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--train"),
        (("--train", "x", "--speed", "fast"), "factors with commas"),
        (("--train", "x", "--from", "espnet", "y"), "librispeech"),
        (("--train", "x", "--max-rejected", "5"), "0<=x<=1"),
    ],
)
def test_wrong_usage_is_explained(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    done = call(*options, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert said in done.stderr
