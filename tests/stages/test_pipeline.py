"""The five commands, end to end, on a tiny corpus; then what each promises of its output."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import kdpipe
from kdpipe.checkpoint import load_model, read_card
from kdpipe.errors import InputNotFoundError, ModelFormatError
from kdpipe.files import read_json, read_jsonl
from kdpipe.testing import TINY_RECIPE, tiny_manifest, tone_waveform
from kdpipe_cli.main import main

SETS = [part for override in TINY_RECIPE for part in ("--set", override)]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Call the command line in this process; anything but exit code 0 fails."""
    monkeypatch.setattr(sys, "argv", ["kdpipe", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the five commands write."""
    out = tmp_path_factory.mktemp("pipeline")
    for seed, (name, size) in enumerate({"train": 20, "dev": 5, "test": 5}.items()):
        tiny_manifest(out / name, size, seed)
    with pytest.MonkeyPatch.context() as patch:
        manifests = [f"--{n}={out}/{n}/manifest.jsonl" for n in ("train", "dev", "test")]
        run(patch, "prepare", *manifests, "--out", f"{out}/data", "--workers", "0")
        shared = ("--data", f"{out}/data")
        recipe = (*shared, "--recipe", "demo", *SETS)
        run(patch, "train-teacher", *recipe, "--out", f"{out}/teacher")
        run(
            patch, "teacher-dump", *shared, "--teacher", f"{out}/teacher", "--beam", "3",
            "--nbest", "3", "--out", f"{out}/train.zarr",
        )  # fmt: skip
        run(patch, "train-student", *recipe, "--out", f"{out}/plain")
        run(
            patch, "train-student", *recipe, "--targets", f"{out}/train.zarr", "--out",
            f"{out}/student",
        )  # fmt: skip
        for model in ("teacher", "student"):
            run(
                patch, "decode", "--model", f"{out}/{model}", *shared, "--beam", "3", "--nbest",
                "2", "--out", f"{out}/decode-{model}",
            )  # fmt: skip
    return out


def test_models_are_self_contained(folder: Path) -> None:
    for name, kind in {"teacher": "ar", "plain": "mask-ctc", "student": "mask-ctc"}.items():
        bundle = load_model(folder / name)
        assert bundle.card.sizes.kind == kind
        for file in ("model.toml", "weights.safetensors", "tokenizer.model", "cmvn.safetensors"):
            assert (folder / name / file).is_file()


def test_the_student_names_its_teacher(folder: Path) -> None:
    store = kdpipe.open_store(folder / "train.zarr")
    (lineage,) = read_card(folder / "student").lineage
    assert lineage.store_digest == store.digest
    assert lineage.teacher_sha256 == store.header.teacher.sha256
    assert read_card(folder / "plain").lineage == ()


def test_every_term_is_logged_by_name(folder: Path) -> None:
    epochs = [r for r in read_jsonl(folder / "student" / "train.jsonl") if r["type"] == "epoch"]
    frame = {"ctc", "mlm", "encoder_frame", "decoder_frame", "total"}
    sequence = {"encoder_sequence", "decoder_sequence"}
    assert frame <= set(epochs[0])
    assert not sequence & set(epochs[0])
    assert frame | sequence <= set(epochs[1])
    steps = [r for r in read_jsonl(folder / "student" / "train.jsonl") if r["type"] == "step"]
    assert all({"epoch", "step", "learning_rate", "audio_seconds_per_second"} <= set(r)
               for r in steps)  # fmt: skip


@pytest.mark.parametrize("model", ["teacher", "student"])
def test_decode_writes_what_it_promises(folder: Path, model: str) -> None:
    out = folder / f"decode-{model}"
    lines = list(read_jsonl(out / "hyp.jsonl"))
    prepared = [r["id"] for r in read_jsonl(folder / "test" / "manifest.jsonl")]
    assert [line["id"] for line in lines] == prepared
    for line in lines:
        nbest = line["nbest"]
        assert isinstance(nbest, list)
        assert 1 <= len(nbest) <= 2
        assert nbest[0] == {"text": line["text"], "score": line["score"]}
    score = read_json(out / "score.json")
    assert isinstance(score, dict)
    assert {"split", "mode", "beam", "utterances", "skipped", "audio_seconds", "decode_seconds",
            "rtf", "threads", "device", "wer", "cer"} <= set(score)  # fmt: skip
    assert score["mode"] == {"teacher": "ar", "student": "mask-ctc"}[model]
    assert score["utterances"] == 5
    assert set(score["cer"]) == {
        "rate", "substitutions", "deletions", "insertions", "reference", "ci95",
    }  # fmt: skip
    errors = sum(score["cer"][k] for k in ("substitutions", "deletions", "insertions"))
    assert score["cer"]["rate"] == pytest.approx(errors / score["cer"]["reference"])


def test_the_same_command_again_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "decode-student" / "hyp.jsonl").read_bytes()
    weights = (folder / "student" / "weights.safetensors").stat().st_mtime_ns
    run(
        monkeypatch, "train-student", "--data", f"{folder}/data", "--recipe", "demo", *SETS,
        "--targets", f"{folder}/train.zarr", "--out", f"{folder}/student",
    )  # fmt: skip
    assert "already complete" in capsys.readouterr().out
    run(
        monkeypatch, "decode", "--model", f"{folder}/student", "--data", f"{folder}/data",
        "--beam", "3", "--nbest", "2", "--out", f"{folder}/decode-student",
    )  # fmt: skip
    assert (folder / "decode-student" / "hyp.jsonl").read_bytes() == before
    assert (folder / "student" / "weights.safetensors").stat().st_mtime_ns == weights


def test_a_decode_that_was_killed_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = folder / "decode-student"
    before = (out / "hyp.jsonl").read_bytes()
    run_record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**run_record, "complete": False}))
    (out / "hyp.jsonl").unlink()
    lines = (out / "partial.jsonl").read_text().splitlines(keepends=True)
    (out / "partial.jsonl").write_text("".join(lines[:2]) + lines[2][:20])
    run(
        monkeypatch, "decode", "--model", f"{folder}/student", "--data", f"{folder}/data",
        "--beam", "3", "--nbest", "2", "--out", f"{folder}/decode-student",
    )  # fmt: skip
    assert (out / "hyp.jsonl").read_bytes() == before


def test_audio_files_are_decoded_and_bad_ones_listed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waveform = tone_waveform("ABC", np.random.default_rng(0))
    soundfile.write(tmp_path / "good.flac", waveform, 16_000)
    soundfile.write(tmp_path / "slow.wav", waveform[::2], 8_000)
    soundfile.write(tmp_path / "short.wav", waveform[:300], 16_000)
    (tmp_path / "bad.wav").write_text("no audio")
    names = ["good.flac", "slow.wav", "short.wav", "bad.wav"]
    run(
        monkeypatch, "decode", "--model", f"{folder}/student",
        *[str(tmp_path / name) for name in names], "--out", f"{tmp_path}/out",
    )  # fmt: skip
    lines = {str(r["id"]): r for r in read_jsonl(tmp_path / "out" / "hyp.jsonl")}
    assert list(lines) == ["good", "slow", "short"]
    assert lines["short"]["text"] == ""
    rejected = list(read_jsonl(tmp_path / "out" / "rejected.jsonl"))
    assert [r["id"] for r in rejected] == ["bad"]
    score = read_json(tmp_path / "out" / "score.json")
    assert isinstance(score, dict)
    assert score["skipped"] == 1
    assert score["wer"] is None


def test_the_python_interface(folder: Path) -> None:
    model = kdpipe.load_model(folder / "student")
    waveform = tone_waveform("AB", np.random.default_rng(1))
    (texts,) = kdpipe.decode(model, [waveform], beam=2, nbest=2)
    assert texts
    assert all(isinstance(text, str) for text in texts)
    store = kdpipe.open_store(folder / "train.zarr")
    assert len(store) == len(kdpipe.read_manifest(folder / "train" / "manifest.jsonl"))


def test_damaged_models_are_refused(folder: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        target = tmp_path / name
        target.mkdir()
        for file in (folder / "student").iterdir():
            if file.is_file():
                (target / file.name).write_bytes(file.read_bytes())
        return target

    unfinished = copy("unfinished")
    (unfinished / "weights.safetensors").unlink()
    with pytest.raises(InputNotFoundError, match="not finished"):
        load_model(unfinished)
    torn = copy("torn")
    (torn / "weights.safetensors").write_bytes(b"\x08" * 100)
    with pytest.raises(ModelFormatError, match="damaged"):
        load_model(torn)
    other = copy("other")
    (other / "weights.safetensors").write_bytes(
        (folder / "teacher" / "weights.safetensors").read_bytes()
    )
    with pytest.raises(ModelFormatError, match="do not fit"):
        load_model(other)
    newer = copy("newer")
    text = (newer / "model.toml").read_text()
    (newer / "model.toml").write_text(text.replace("format_version = 1", "format_version = 9"))
    with pytest.raises(ModelFormatError, match="version 9"):
        load_model(newer)
