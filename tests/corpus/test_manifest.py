from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdpipe.corpus.manifest import read_manifest, write_manifest
from kdpipe.corpus.utterance import Utterance
from kdpipe.errors import DataError, InputNotFoundError

GOOD: dict[str, object] = {"audio_filepath": "x/a.flac", "duration": 1.5, "text": "YES"}


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def test_defaults(tmp_path: Path) -> None:
    (utterance,) = read_manifest(write_lines(tmp_path / "m.jsonl", GOOD))
    assert utterance == Utterance("a", tmp_path / "x/a.flac", 1.5, "YES")


def test_every_field(tmp_path: Path) -> None:
    record = GOOD | {
        "id": "an 1",
        "speaker": "s",
        "offset": 0,
        "audio_filepath": "/abs/a.wav",
        "lang": "en",
    }
    (utterance,) = read_manifest(write_lines(tmp_path / "m.jsonl", record))
    assert utterance == Utterance("an 1", Path("/abs/a.wav"), 1.5, "YES", "s", 0.0, segment=True)


def test_unlabelled_and_repeated_ids_are_read(tmp_path: Path) -> None:
    record = {"audio_filepath": "a.wav", "duration": 1}
    read = read_manifest(write_lines(tmp_path / "m.jsonl", record, record))
    assert [u.text for u in read] == [None, None]


def test_written_is_read_back(tmp_path: Path) -> None:
    utterances = [
        Utterance("a", tmp_path / "in/a.wav", 1.0, "für  ELISE", "s"),
        Utterance("b", Path("/elsewhere/b.wav"), 2.0, None, None, 0.0, segment=True),
        Utterance("c", Path("/elsewhere/b.wav"), 2.0, "", None, 3.5, segment=True),
    ]
    write_manifest(tmp_path / "m.jsonl", utterances)
    assert read_manifest(tmp_path / "m.jsonl") == utterances
    assert '"in/a.wav"' in (tmp_path / "m.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "change",
    [
        {"audio_filepath": None},
        {"audio_filepath": ""},
        {"audio_filepath": 3},
        {"duration": None},
        {"duration": "1.0"},
        {"duration": True},
        {"duration": -1},
        {"duration": float("nan")},
        {"duration": float("inf")},
        {"offset": -0.1},
        {"offset": None},
        {"text": 12},
        {"speaker": 12},
        {"id": ""},
        {"id": " a"},
        {"id": "a\nb"},
        {"id": 7},
        {"duration": 10**400},
        {"text": "half \ud83d"},
        {"speaker": "\udc80"},
        {"audio_filepath": "\udc80.wav"},
        {"id": "\ud83d"},
    ],
)
def test_bad_records_are_named(tmp_path: Path, change: dict[str, object]) -> None:
    path = write_lines(tmp_path / "m.jsonl", GOOD, GOOD | change)
    with pytest.raises(DataError, match="record 2"):
        read_manifest(path)


@pytest.mark.parametrize("value", ["[" * 100_000, "9" * 5000])
def test_a_line_that_no_reader_takes_is_named(value: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "m.jsonl", GOOD)
    with path.open("a", encoding="utf-8") as lines:
        lines.write(f'{{"audio_filepath": "a.wav", "duration": {value}}}\n')
    with pytest.raises(DataError, match=r"m\.jsonl:2: not JSON"):
        read_manifest(path)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(InputNotFoundError, match="utterance"):
        read_manifest(write_lines(tmp_path / "empty.jsonl"))
    with pytest.raises(DataError, match="not a JSON object"):
        read_manifest(write_lines(tmp_path / "list.jsonl", GOOD, [1]))
    (tmp_path / "torn.jsonl").write_text('{"audio_filepath": "a', encoding="utf-8")
    with pytest.raises(DataError, match=r"torn\.jsonl:1"):
        read_manifest(tmp_path / "torn.jsonl")
    (tmp_path / "latin.jsonl").write_bytes('{"audio_filepath": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        read_manifest(tmp_path / "latin.jsonl")
