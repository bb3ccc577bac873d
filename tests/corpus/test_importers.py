from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from kdpipe.corpus.importers import CorpusKind, find_splits, read_split
from kdpipe.corpus.utterance import Utterance
from kdpipe.errors import DataError, InputNotFoundError


def write_audio(path: Path, seconds: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(round(seconds * 16000)), 16000)
    return path


def write_text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_all(kind: CorpusKind, root: Path) -> dict[str, list[Utterance]]:
    return {name: read_split(kind, path) for name, path in find_splits(kind, root).items()}


@pytest.fixture
def librispeech(tmp_path: Path) -> Path:
    root = tmp_path / "LibriSpeech"
    for split, speaker in (("dev-clean", "84"), ("train-clean-100", "103")):
        chapter = root / split / speaker / "1240"
        stem = f"{speaker}-1240"
        write_text(
            chapter / f"{stem}.trans.txt", f"{stem}-0001 AND  SO", f"{stem}-0000 CHAPTER ONE"
        )
        write_audio(chapter / f"{stem}-0000.flac", 1.5)
        write_audio(chapter / f"{stem}-0001.flac", 0.25)
    write_text(root / "SPEAKERS.TXT", "; not a split")
    return root


def test_librispeech(librispeech: Path) -> None:
    found = read_all("librispeech", librispeech)
    folder = librispeech / "dev-clean/84/1240"
    assert found["dev-clean"] == [
        Utterance(
            "84-1240-0000", folder / "84-1240-0000.flac", 1.5, "CHAPTER ONE", "84", measured=True
        ),
        Utterance(
            "84-1240-0001", folder / "84-1240-0001.flac", 0.25, "AND  SO", "84", measured=True
        ),
    ]
    assert list(found) == ["dev-clean", "train-clean-100"]


def test_librispeech_from_above_and_from_one_split(librispeech: Path) -> None:
    assert list(find_splits("librispeech", librispeech.parent)) == ["dev-clean", "train-clean-100"]
    assert list(find_splits("librispeech", librispeech / "dev-clean")) == ["dev-clean"]


def test_missing_audio_is_left_to_prepare(librispeech: Path) -> None:
    (librispeech / "dev-clean/84/1240/84-1240-0001.flac").unlink()
    found = read_split("librispeech", librispeech / "dev-clean")
    assert [u.duration for u in found] == [1.5, 0.0]


@pytest.fixture
def aishell1(tmp_path: Path) -> Path:
    root = tmp_path / "data_aishell"
    write_text(
        root / "transcript/aishell_transcript_v0.8.txt",
        "BAC009S0002W0122 而 对 楼市 成交",
        "BAC009S0724W0121 广州市 房地产",
        "BAC009S0764W0121 甚至 出现",
    )
    for split, speaker in (("train", "S0002"), ("dev", "S0724"), ("test", "S0764")):
        number = "0122" if split == "train" else "0121"
        write_audio(root / "wav" / split / speaker / f"BAC009{speaker}W{number}.wav", 1.0)
    write_audio(root / "wav/train/S0002/BAC009S0002W0999.wav", 1.0)
    return root


def test_aishell1(aishell1: Path) -> None:
    found = read_all("aishell1", aishell1.parent)
    audio = aishell1 / "wav/train/S0002/BAC009S0002W0122.wav"
    assert found["train"] == [
        Utterance("BAC009S0002W0122", audio, 1.0, "而对楼市成交", "S0002", measured=True)
    ]
    assert [u.text for u in found["dev"] + found["test"]] == ["广州市房地产", "甚至出现"]


@pytest.fixture
def kaldi(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "train"
    first = write_audio(tmp_path / "wav/a.wav", 2.0)
    write_audio(folder / "rel/b.wav", 1.0)
    write_text(folder / "wav.scp", f"a {first}", "b rel/b.wav")
    write_text(folder / "text", "a ONE TWO", "b")
    write_text(folder / "utt2spk", "a s1", "b s2")
    return folder


def test_kaldi_whole_recordings(kaldi: Path) -> None:
    first, second = read_split("kaldi", kaldi)
    audio = kaldi.parents[1] / "wav/a.wav"
    assert first == Utterance("a", audio, 2.0, "ONE TWO", "s1", measured=True)
    assert second == Utterance("b", kaldi / "rel/b.wav", 1.0, "", "s2", measured=True)
    assert (
        list(find_splits("kaldi", kaldi.parent)) == list(find_splits("kaldi", kaldi)) == ["train"]
    )


def test_kaldi_segments(kaldi: Path) -> None:
    write_text(kaldi / "segments", "x a 0 0.75", "y a 0.75 -1", "z b 0.1 0.9")
    write_text(kaldi / "text", "x ONE", "y TWO")
    x, y, z = read_split("kaldi", kaldi)
    assert (x.offset, x.duration, x.segment, x.text) == (0.0, 0.75, True, "ONE")
    assert (y.offset, y.duration, y.text) == (0.75, 1.25, "TWO")
    assert z.duration == pytest.approx(0.8)
    assert (z.offset, z.text) == (0.1, None)
    assert [u.measured for u in (x, y, z)] == [False, True, False]


def test_kaldi_without_text_is_unlabelled(kaldi: Path) -> None:
    (kaldi / "text").unlink()
    (kaldi / "utt2spk").unlink()
    assert [(u.text, u.speaker) for u in read_split("kaldi", kaldi)] == [(None, None)] * 2


def test_kaldi_paths_may_start_from_the_current_folder(
    kaldi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(kaldi.parents[1])
    write_text(kaldi / "wav.scp", "a wav/a.wav")
    assert read_split("kaldi", kaldi)[0].audio == kaldi.parents[1] / "wav/a.wav"


def test_kaldi_stated_durations(kaldi: Path) -> None:
    write_text(kaldi / "utt2dur", "b 1.01", "a 2.02")
    found = read_split("kaldi", kaldi)
    assert [(u.duration, u.measured) for u in found] == [(2.02, False), (1.01, False)]


@pytest.mark.parametrize(
    ("name", "line", "problem"),
    [
        ("wav.scp", "a sph2pipe -f wav a.sph |", "is a command"),
        ("wav.scp", "a", "no file"),
        ("wav.scp", "b rel/b.wav\nb rel/b.wav", "comes twice"),
        ("text", "a ONE\na TWO", "comes twice"),
        ("segments", "x a 0.5", "START END"),
        ("segments", "x nowhere 0.5 1", "START END"),
        ("segments", "x a 1.5 0.5", "before it starts"),
        ("segments", "x a nan 0.5", "no number"),
        ("segments", "x a -0.5 0.5", "below 0"),
        ("utt2dur", "a 1.0", "b is not in it"),
        ("utt2dur", "a long\nb 1", "no number"),
    ],
)
def test_kaldi_tables_that_cannot_be_followed_are_named(
    kaldi: Path, name: str, line: str, problem: str
) -> None:
    write_text(kaldi / name, line)
    with pytest.raises(DataError, match=problem) as caught:
        read_split("kaldi", kaldi)
    assert name in caught.value.where


Cut = dict[str, Any]


@pytest.fixture
def cut(tmp_path: Path) -> Cut:
    audio = write_audio(tmp_path / "wav/rec.wav", 3.0)
    return {
        "id": "cut-0",
        "start": 0.0,
        "duration": 3.0,
        "channel": 0,
        "supervisions": [
            {
                "id": "s",
                "recording_id": "r",
                "start": 0.0,
                "duration": 3.0,
                "channel": 0,
                "text": "ONE",
                "speaker": "p",
            }
        ],
        "recording": {
            "id": "r",
            "sources": [{"type": "file", "channels": [0], "source": str(audio)}],
            "sampling_rate": 16000,
            "num_samples": 48000,
            "duration": 3.0,
            "channel_ids": [0],
        },
        "type": "MonoCut",
    }


def write_cuts(path: Path, *cuts: Cut) -> Path:
    lines = "".join(json.dumps(cut) + "\n" for cut in cuts).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


@pytest.mark.parametrize("name", ["lib_cuts_train-clean.jsonl.gz", "lib_cuts_train-clean.jsonl"])
def test_lhotse(tmp_path: Path, cut: Cut, name: str) -> None:
    part = cut | {"id": "cut-1", "start": 1.0, "duration": 1.5, "supervisions": []}
    write_cuts(tmp_path / name, cut, part)
    audio = tmp_path / "wav/rec.wav"
    expected = [
        Utterance("cut-0", audio, 3.0, "ONE", "p"),
        Utterance("cut-1", audio, 1.5, None, None, 1.0, segment=True),
    ]
    assert read_all("lhotse", tmp_path) == {"train-clean": expected}
    assert read_all("lhotse", tmp_path / name) == {"train-clean": expected}


@pytest.mark.parametrize(
    "names",
    [
        ("aishell_cuts_train.jsonl.gz", "magicdata_cuts_train.jsonl.gz"),
        ("cuts_dev.jsonl", "cuts_dev.jsonl.gz"),
    ],
)
def test_lhotse_files_of_one_split_are_refused(
    tmp_path: Path, cut: Cut, names: tuple[str, str]
) -> None:
    for name in names:
        write_cuts(tmp_path / name, cut)
    with pytest.raises(DataError, match=" and ".join(names)):
        find_splits("lhotse", tmp_path)
    (tmp_path / names[1]).rename(tmp_path / "b_cuts_other.jsonl.gz")
    assert len(find_splits("lhotse", tmp_path)) == 2


def test_lhotse_several_supervisions_are_several_utterances(tmp_path: Path, cut: Cut) -> None:
    base = cut["supervisions"][0]
    said = [
        base | {"id": f"s{i}", "start": 0.5 * i, "duration": 0.5, "text": f"T{i}"} for i in range(2)
    ]
    path = write_cuts(
        tmp_path / "cuts.jsonl", cut | {"start": 1.0, "duration": 2.0, "supervisions": said}
    )
    found = read_split("lhotse", path)
    assert [(u.id, u.offset, u.duration, u.text) for u in found] == [
        ("s0", 1.0, 0.5, "T0"),
        ("s1", 1.5, 0.5, "T1"),
    ]


def test_lhotse_a_supervision_shorter_than_its_cut_is_the_utterance(
    tmp_path: Path, cut: Cut
) -> None:
    (said,) = cut["supervisions"]
    part = cut | {"supervisions": [said | {"start": 0.5, "duration": 1.0}]}
    (found,) = read_split("lhotse", write_cuts(tmp_path / "cuts.jsonl", part))
    assert (found.id, found.offset, found.duration, found.segment) == (cut["id"], 0.5, 1.0, True)


def test_lhotse_paths_may_be_relative_to_the_manifest(tmp_path: Path, cut: Cut) -> None:
    cut["recording"]["sources"][0]["source"] = "wav/rec.wav"
    path = write_cuts(tmp_path / "cuts.jsonl", cut)
    assert read_split("lhotse", path)[0].audio == tmp_path / "wav/rec.wav"


CHANGES: list[tuple[str, Callable[[Cut], Any]]] = [
    ("MixedCut", lambda cut: cut.update(type="MixedCut")),
    ("transformed", lambda cut: cut["recording"].update(transforms=[{"name": "Speed"}])),
    ("a command", lambda cut: cut["recording"]["sources"][0].update(type="command")),
    ("several", lambda cut: cut["recording"]["sources"][0].update(channels=[0, 1])),
    ("not a Lhotse", lambda cut: cut.pop("recording")),
    ("not a Lhotse", lambda cut: cut.update(duration=-1)),
    ("not a Lhotse", lambda cut: cut.update(start="soon")),
    ("not a Lhotse", lambda cut: cut["supervisions"][0].update(text=["ONE"])),
]


@pytest.mark.parametrize(("problem", "change"), CHANGES)
def test_lhotse_cuts_that_are_not_on_the_disk_are_refused(
    tmp_path: Path, cut: Cut, problem: str, change: Callable[[Cut], Any]
) -> None:
    change(cut)
    path = write_cuts(tmp_path / "cuts.jsonl", cut)
    with pytest.raises(DataError, match=problem) as caught:
        read_split("lhotse", path)
    assert caught.value.where.endswith("cuts.jsonl:1")


def test_lhotse_damaged_files_are_named(tmp_path: Path, cut: Cut) -> None:
    whole = write_cuts(tmp_path / "a_cuts.jsonl.gz", cut).read_bytes()
    for content in (b"junk", whole[:-12], gzip.compress(b"{torn"), gzip.compress(b"[1]\n")):
        (tmp_path / "a_cuts.jsonl.gz").write_bytes(content)
        with pytest.raises(DataError, match="a_cuts"):
            read_split("lhotse", tmp_path / "a_cuts.jsonl.gz")


@pytest.mark.parametrize("kind", ["librispeech", "aishell1", "kaldi", "lhotse"])
def test_other_layouts_are_refused(tmp_path: Path, kind: CorpusKind) -> None:
    (tmp_path / "empty").mkdir()
    write_text(tmp_path / "file.txt", "x")
    for path in (tmp_path / "none", tmp_path / "empty", tmp_path / "file.txt"):
        with pytest.raises(InputNotFoundError):
            find_splits(kind, path)


def test_text_that_is_not_utf8_is_named(kaldi: Path) -> None:
    (kaldi / "text").write_bytes(b"a \xff\xfe")
    with pytest.raises(DataError, match="UTF-8"):
        read_split("kaldi", kaldi)
