"""What decode is told reaches the search, and how it runs changes no hypothesis."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from kdpipe.features.prepared import PreparedData
from kdpipe.files import read_json, read_jsonl
from kdpipe.models import Encoded
from kdpipe.scoring import ScoreReport
from kdpipe.stages import recognise
from kdpipe.stages.decode import Runtime, decode_audio, decode_split
from kdpipe.stages.recognise import DecodeMode, SearchSettings
from kdpipe.testing import random_model
from kdpipe_cli.main import main

# None of them a default.
SETTINGS = SearchSettings(
    beam=3, nbest=2, ctc_weight=0.7, tokens_per_iteration=4, mask_threshold=0.6, ctc_rescoring=0.25
)
SEARCH = {"teacher": "joint_beam_search", "student": "mask_ctc_search"}
KEYWORDS: dict[str, dict[str, float]] = {
    "teacher": {"beam": 3, "nbest": 2, "ctc_weight": 0.7},
    "student": {
        "beam": 3, "nbest": 2, "tokens_per_iteration": 4, "mask_threshold": 0.6,
        "ctc_rescoring_weight": 0.25,
    },
}  # fmt: skip
BOTH = pytest.mark.parametrize("name", ["teacher", "student"])
Told = list[dict[str, Any]]
Line = dict[str, object]


@pytest.fixture(scope="module")
def models(tiny_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models")
    random_model(tiny_data, out / "teacher", "ar")
    random_model(tiny_data, out / "student", "mask-ctc")
    return out


def spy_on(monkeypatch: pytest.MonkeyPatch, search: str) -> Told:
    """The keywords of every call of a search from now on, its utterances and its threads."""
    original: Callable[..., object] = getattr(recognise, search)
    told: Told = []

    def spy(model: object, encoded: Encoded, **keywords: Any) -> object:
        told.append({
            "keywords": keywords,
            "utterances": len(encoded.lengths),
            "threads": torch.get_num_threads(),
        })  # fmt: skip
        return original(model, encoded, **keywords)

    monkeypatch.setattr(recognise, search, spy)
    return told


@BOTH
def test_every_setting_of_a_search_reaches_it(
    tiny_data: PreparedData,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    told, runtime = spy_on(monkeypatch, SEARCH[name]), Runtime("cpu", batch_size=6)
    decode_split(models / name, tiny_data.folder, "test", tmp_path / "split", SETTINGS, runtime)
    audio = [u.audio for u in tiny_data.split("test").utterances[:2]]
    decode_audio(models / name, audio, tmp_path / "audio", SETTINGS, runtime)
    assert [call["keywords"] for call in told] == [KEYWORDS[name]] * 2
    assert [call["utterances"] for call in told] == [6, 2]


@pytest.mark.parametrize(
    ("mode", "idle"),
    [
        ("auto", ()),
        ("mask-ctc", ("ctc_weight",)),
        ("ar", ("tokens_per_iteration", "mask_threshold", "ctc_rescoring")),
    ],
)
def test_the_options_of_the_command_are_the_settings(
    tiny_data: PreparedData,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: DecodeMode,
    idle: tuple[str, ...],
) -> None:
    told: list[tuple[SearchSettings, Runtime]] = []

    def spy(
        model: Path, data: Path, split: str, out: Path, settings: SearchSettings, runtime: Runtime
    ) -> ScoreReport:
        told.append((settings, runtime))
        return decode_split(model, data, split, out, SearchSettings(mode="ctc"), Runtime("cpu"))

    search = {key: value for key, value in asdict(SETTINGS).items() if key not in ("mode", *idle)}
    options = {**search, "mode": mode, "device": "cpu", "threads": 3, "batch_size": 4}
    given = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
    paths = [f"--model={models}/student", f"--data={tiny_data.folder}", f"--out={tmp_path}/out"]
    monkeypatch.setattr("kdpipe.stages.decode.decode_split", spy)
    monkeypatch.setattr(sys, "argv", ["kdpipe", "decode", *paths, *given])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    assert told == [(SearchSettings(mode, **search), Runtime("cpu", 3, 4))]


def test_the_threads_asked_for_search_and_the_processes_own_come_back(
    tiny_data: PreparedData,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
) -> None:
    told, runtime = spy_on(monkeypatch, "mask_ctc_search"), Runtime("cpu", threads + 1, 6)
    student = models / "student"
    decode_split(student, tiny_data.folder, "test", tmp_path / "out", SETTINGS, runtime)
    assert [call["threads"] for call in told] == [threads + 1]
    assert torch.get_num_threads() == threads
    score = read_json(tmp_path / "out" / "score.json")
    assert isinstance(score, dict)
    assert score["threads"] == threads + 1


def test_the_processes_own_threads_come_back_after_an_error(
    tiny_data: PreparedData,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
) -> None:
    def failing(*arguments: object, **keywords: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(recognise, "mask_ctc_search", failing)
    student, runtime = models / "student", Runtime("cpu", threads + 1)
    with pytest.raises(RuntimeError, match="out of memory"):
        decode_split(student, tiny_data.folder, "test", tmp_path / "out", SETTINGS, runtime)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("name", "mode", "nbest"),
    [("teacher", "ar", 2), ("student", "mask-ctc", 2), ("student", "ctc", 1)],
)
def test_a_batch_of_utterances_reads_as_each_alone(
    tiny_data: PreparedData,
    models: Path,
    tmp_path: Path,
    name: str,
    mode: DecodeMode,
    nbest: int,
) -> None:
    settings = SearchSettings(mode=mode, beam=3, nbest=nbest, mask_threshold=0.6)
    texts, scores = [], []
    for size in (1, 3):
        out, runtime = tmp_path / f"{size}", Runtime("cpu", batch_size=size)
        decode_split(models / name, tiny_data.folder, "test", out, settings, runtime)
        lines = list(read_jsonl(out / "hyp.jsonl"))
        texts.append([_without_scores(line) for line in lines])
        scores.append([score for line in lines for score in _scores(line)])
    assert texts[0] == texts[1]
    assert len(scores[0]) == (18 if nbest == 2 else 6)
    # The encoder adds up a padded batch's products in another order.
    assert scores[0] == pytest.approx(scores[1], rel=1e-5, abs=1e-4)


def _hypotheses(line: Line) -> list[Any]:
    nbest = line.get("nbest", [])
    assert isinstance(nbest, list)
    return [line, *nbest]


def _without_scores(line: Line) -> list[str]:
    return [str(line["id"]), *(hypothesis["text"] for hypothesis in _hypotheses(line))]


def _scores(line: Line) -> list[float]:
    return [hypothesis["score"] for hypothesis in _hypotheses(line)]
