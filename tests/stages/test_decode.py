"""What decode does with a torn line, several channels, and utterances too long for a search."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from kdpipe.corpus.manifest import read_manifest
from kdpipe.errors import DataError, MismatchError, OutputConflictError
from kdpipe.features.audio import Channel, read_audio
from kdpipe.features.prepared import PreparedData
from kdpipe.files import read_json, read_jsonl
from kdpipe.models import subsampled_lengths
from kdpipe.scoring import ScoreReport, read_report
from kdpipe.search.settings import MAX_FRAMES
from kdpipe.stages.decode import Runtime, decode_audio, decode_split
from kdpipe.stages.prepare import PrepareSettings, prepare
from kdpipe.stages.recognise import SearchSettings
from kdpipe.testing import random_model, tiny_manifest, tone_waveform

SEARCH = SearchSettings(beam=2)
GREEDY = SearchSettings(mode="ctc")
CPU = Runtime("cpu")


@pytest.fixture(scope="module")
def student(tiny_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tiny_data, tmp_path_factory.mktemp("models") / "student", "mask-ctc")


def limit_frames(monkeypatch: pytest.MonkeyPatch, frames: int) -> None:
    """As if the searches took no more: ten minutes of speech would take too long here."""
    assert frames < MAX_FRAMES
    monkeypatch.setattr("kdpipe.search.settings.MAX_FRAMES", frames)


def test_a_line_torn_inside_a_character_is_decoded_again(
    tiny_data: PreparedData, student: Path, tmp_path: Path
) -> None:
    decode_split(student, tiny_data.folder, "test", tmp_path / "out", GREEDY, CPU)
    before = (tmp_path / "out" / "hyp.jsonl").read_bytes()
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    (tmp_path / "out" / "run.json").write_text(json.dumps({**record, "complete": False}))
    partial = tmp_path / "out" / "partial.jsonl"
    lines = partial.read_bytes().splitlines(keepends=True)
    torn = '{"id": "test-002", "nbest": [{"text": "好'.encode()[:-1]
    partial.write_bytes(b"".join(lines[:2]) + torn)
    decode_split(student, tiny_data.folder, "test", tmp_path / "out", GREEDY, CPU)
    assert (tmp_path / "out" / "hyp.jsonl").read_bytes() == before


def test_a_complete_folder_is_told_again_and_not_written(
    tiny_data: PreparedData, student: Path, tmp_path: Path
) -> None:
    audio = [u.audio for u in tiny_data.split("test").utterances[:2]]

    def both() -> list[ScoreReport]:
        return [
            decode_split(student, tiny_data.folder, "test", tmp_path / "split", GREEDY, CPU),
            decode_audio(student, audio, tmp_path / "audio", GREEDY, CPU),
        ]

    first = both()
    for kind in ("split", "audio"):
        (tmp_path / kind / "partial.jsonl").unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json*")}
    assert both() == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json*")} == before
    (tmp_path / "split" / "hyp.jsonl").unlink()
    with pytest.raises(DataError, match=r"hyp\.jsonl is gone"):
        both()


def test_the_same_manifest_of_other_recordings_is_refused(
    tiny_data: PreparedData, student: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus"
    manifest = tiny_manifest(corpus, 6, 2)
    audio = sorted(path for path in corpus.rglob("*") if path.suffix in (".wav", ".flac"))
    for name in ("a", "b"):
        splits = {"test": read_manifest(manifest)}
        prepare(splits, tmp_path / name, PrepareSettings(like=student), workers=0)
        for path in audio:
            samples, rate = soundfile.read(path)
            soundfile.write(path, samples[::-1] / 2, rate)
    a, b = (PreparedData.open(tmp_path / name).split("test") for name in ("a", "b"))
    assert a.manifest_digest == b.manifest_digest
    decode_split(student, tmp_path / "a", "test", tmp_path / "out", GREEDY, CPU)
    decode_split(student, tmp_path / "a", "test", tmp_path / "out", GREEDY, CPU)
    with pytest.raises(OutputConflictError, match="content_digest"):
        decode_split(student, tmp_path / "b", "test", tmp_path / "out", GREEDY, CPU)


def test_a_split_of_another_channel_than_the_models_is_refused(
    tiny_data: PreparedData, tmp_path: Path
) -> None:
    model = random_model(tiny_data, tmp_path / "model", "mask-ctc")
    card = (model / "model.toml").read_text()
    (model / "model.toml").write_text(card.replace('channel = "mix"', 'channel = "first"'))
    with pytest.raises(MismatchError, match="audio channel") as refusal:
        decode_split(model, tiny_data.folder, "test", tmp_path / "out", GREEDY, CPU)
    assert "--channel first`" in refusal.value.remedy


@pytest.mark.parametrize("channel", ["first", "mix"])
def test_audio_files_are_heard_on_the_models_channel(channel: Channel, tmp_path: Path) -> None:
    chords = read_manifest(tiny_manifest(tmp_path / "chords", 6, 0))
    prepare({"train": chords}, tmp_path / "data", PrepareSettings(channel=channel), workers=0)
    data = PreparedData.open(tmp_path / "data")
    model = random_model(data, tmp_path / "student", "mask-ctc")
    random = np.random.default_rng(0)
    left, right = (tone_waveform(text, random)[:12_000] for text in ("ABCD", "FEDC"))
    sounds = {"first": left, "mix": (left + right) / 2, "stereo": np.stack([left, right], 1)}
    for name, sound in sounds.items():
        soundfile.write(tmp_path / f"{name}.wav", sound, 16_000, subtype="FLOAT")
    files = [tmp_path / f"{name}.wav" for name in sounds]
    decode_audio(model, files, tmp_path / "out", GREEDY, CPU)
    scores = {line["id"]: line["score"] for line in read_jsonl(tmp_path / "out" / "hyp.jsonl")}
    assert scores["first"] != scores["mix"]
    assert scores["stereo"] == scores[channel]


def test_utterances_of_a_split_too_long_for_the_search_are_listed(
    tiny_data: PreparedData, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = list(tiny_data.split("test").utterances)
    limit = sorted(subsampled_lengths(u.num_frames) for u in chosen)[3]
    kept = [u for u in chosen if subsampled_lengths(u.num_frames) <= limit]
    long = [u for u in chosen if u not in kept]
    decode_split(student, tiny_data.folder, "test", tmp_path / "whole", SEARCH, CPU)
    assert not (tmp_path / "whole" / "rejected.jsonl").exists()
    limit_frames(monkeypatch, limit)
    for _ in range(2):
        report = decode_split(student, tiny_data.folder, "test", tmp_path / "out", SEARCH, CPU)
        assert report == read_report(tmp_path / "out" / "score.json")
        assert (report.utterances, report.skipped) == (len(kept), len(long))
        assert report.audio_seconds == pytest.approx(sum(u.duration for u in kept))
        assert report.wer is not None
        assert report.wer.reference == sum(len(str(u.text).split()) for u in kept)
        listed = {str(line["id"]): line for line in read_jsonl(tmp_path / "out" / "rejected.jsonl")}
        assert list(listed) == [u.id for u in long]
        assert listed[long[0].id]["audio_filepath"] == str(long[0].audio)
        assert f"limit of {limit}" in str(listed[long[0].id]["reason"])
    lines = {line["id"]: line for line in read_jsonl(tmp_path / "whole" / "hyp.jsonl")}
    found = list(read_jsonl(tmp_path / "out" / "hyp.jsonl"))
    assert found == [lines[u.id] for u in kept]
    greedy = decode_split(student, tiny_data.folder, "test", tmp_path / "ctc", GREEDY, CPU)
    assert (greedy.utterances, greedy.skipped) == (len(chosen), 0)


def test_audio_files_too_long_for_the_search_are_listed(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waveform = tone_waveform("ABCDEF", np.random.default_rng(0))
    # The 28th encoder frame reads feature frames up to 4 * 27 + 6, one each 10 ms and 25 ms long.
    least = 160 * (4 * 27 + 6) + 400
    for name, samples in {"fits": least - 1, "long": least}.items():
        soundfile.write(tmp_path / f"{name}.wav", np.resize(waveform, samples), 16_000)
    limit_frames(monkeypatch, 27)
    files = [tmp_path / "long.wav", tmp_path / "fits.wav"]
    report = decode_audio(student, files, tmp_path / "out", SEARCH, CPU)
    assert (report.utterances, report.skipped) == (1, 1)
    (rejected,) = read_jsonl(tmp_path / "out" / "rejected.jsonl")
    assert (rejected["id"], rejected["audio_filepath"]) == ("long", str(files[0]))
    assert "28 encoder frames" in str(rejected["reason"])
    score = read_json(tmp_path / "out" / "score.json")
    assert isinstance(score, dict)
    assert score["audio_seconds"] == pytest.approx((least - 1) / 16_000)


def test_no_more_audio_is_held_than_a_batch(
    tiny_data: PreparedData, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[weakref.ref[torch.Tensor]] = []
    held: list[int] = []

    def reading(path: Path, channel: Channel) -> torch.Tensor:
        held.append(sum(waveform() is not None for waveform in read))
        waveform = read_audio(path, channel=channel)
        read.append(weakref.ref(waveform))
        return waveform

    monkeypatch.setattr("kdpipe.stages.decode.read_audio", reading)
    chosen = sorted(tiny_data.split("test").utterances, key=lambda u: u.num_frames)
    limit_frames(monkeypatch, subsampled_lengths(chosen[2].num_frames))
    files = [u.audio for u in chosen]
    report = decode_audio(student, files, tmp_path / "out", SEARCH, Runtime("cpu", batch_size=2))
    assert (report.utterances, report.skipped) == (3, 3)
    # The first that was refused is kept with its error.
    assert max(held) <= 2
    found = [str(line["id"]) for line in read_jsonl(tmp_path / "out" / "hyp.jsonl")]
    assert found == [path.stem for path in files[:3]]


def test_two_files_of_one_stem_are_refused(student: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("b.wav", "a.wav", "a.flac", "b.flac", "c.wav")]
    for path in files:
        path.touch()
    with pytest.raises(DataError, match=r"^a: the id of two audio files"):
        decode_audio(student, files, tmp_path / "out", GREEDY, CPU)


def test_nothing_but_utterances_too_long_is_an_error_that_names_one(
    tiny_data: PreparedData, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_frames(monkeypatch, 2)
    first = tiny_data.split("test").utterances[0]
    with pytest.raises(DataError, match=f"{first.id}: .* longer than the limit of 2"):
        decode_split(student, tiny_data.folder, "test", tmp_path / "out", SEARCH, CPU)
    with pytest.raises(DataError, match=rf"{first.id}\.wav: .* longer than the limit of 2"):
        decode_audio(student, [first.audio], tmp_path / "out", SEARCH, CPU)
    assert not (tmp_path / "out").exists()
