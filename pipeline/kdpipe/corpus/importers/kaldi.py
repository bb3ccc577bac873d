"""Kaldi data directories: wav.scp, and where present text, segments, utt2spk, utt2dur."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from kdpipe.corpus.durations import header_durations
from kdpipe.corpus.importers.tables import read_table, table_lines
from kdpipe.corpus.utterance import Utterance
from kdpipe.errors import DataError, InputNotFoundError

__all__ = ["find_splits", "read_split"]


def find_splits(root: Path) -> dict[str, Path]:
    """`root` is a data directory, or a folder of them."""
    if (root / "wav.scp").is_file():
        return {root.name: root}
    found = sorted(root.iterdir()) if root.is_dir() else []
    splits = {path.name: path for path in found if (path / "wav.scp").is_file()}
    if not splits:
        raise InputNotFoundError(
            root, "Kaldi data directory (wav.scp)", "Give one, or their parent"
        )
    return splits


def read_split(path: Path) -> list[Utterance]:
    """Utterances in the order of segments or, without it, of wav.scp.

    Relative audio paths are tried from the data directory, then from the current folder, as
    Kaldi's own. Without `text` the utterances are unlabelled; an id that `text` lacks too.
    """
    recordings = _recordings(path)
    texts = read_table(path / "text") if (path / "text").is_file() else {}
    speakers = read_table(path / "utt2spk") if (path / "utt2spk").is_file() else {}
    if (path / "segments").is_file():
        found = _segments(path / "segments", recordings)
    else:
        found = _whole(path, recordings)
    return [replace(u, text=texts.get(u.id), speaker=speakers.get(u.id)) for u in found]


def _recordings(folder: Path) -> dict[str, Path]:
    recordings: dict[str, Path] = {}
    for where, key, value in table_lines(folder / "wav.scp"):
        if not value or value.endswith("|") or value.startswith("|") or value == "-":
            raise DataError(
                where,
                f"{key} is a command, which is not run" if value else f"{key} has no file",
                "Write the audio to files first (wav-copy scp:wav.scp ...) and list those",
            )
        if key in recordings:
            raise DataError(where, f"{key} comes twice", "Remove one of the lines")
        inside = folder / value
        recordings[key] = inside if inside.exists() else Path(value).absolute()
    return recordings


def _whole(folder: Path, recordings: dict[str, Path]) -> list[Utterance]:
    stated = folder / "utt2dur"
    if stated.is_file():
        rows = {key: (where, value) for where, key, value in table_lines(stated)}
        missing = next((key for key in recordings if key not in rows), None)
        if missing is not None:
            raise DataError(str(stated), f"{missing} is not in it", "Make it again, or remove it")
        durations = [_seconds(*rows[key]) for key in recordings]
    else:
        durations = header_durations(list(recordings.values()), f"read {folder.name}")
    return [
        Utterance(key, path, duration, measured=not stated.is_file())
        for (key, path), duration in zip(recordings.items(), durations, strict=True)
    ]


def _segments(path: Path, recordings: dict[str, Path]) -> list[Utterance]:
    """utterance recording start end; an end of -1 is the recording's own."""
    rows = []
    for where, key, rest in table_lines(path):
        fields = rest.split()
        if len(fields) != 3 or fields[0] not in recordings:
            raise DataError(where, "not UTTERANCE RECORDING START END", "Check it and wav.scp")
        rows.append((where, key, recordings[fields[0]], fields[1], fields[2]))
    open_ended = {row[2] for row in rows if float(_number(row[0], row[4])) == -1}
    ends = dict(zip(open_ended, header_durations(list(open_ended), "read ends"), strict=True))
    return [_segment(*row, ends) for row in rows]


def _segment(
    where: str, key: str, audio: Path, start: str, end: str, ends: dict[Path, float]
) -> Utterance:
    offset, stop = _seconds(where, start), _number(where, end)
    duration = (ends[audio] if stop == -1 else stop) - offset
    if duration <= 0 and audio.is_file():
        raise DataError(where, f"ends at {end}, before it starts", "Mend the line")
    return Utterance(
        key, audio, max(duration, 0.0), offset=offset, segment=True, measured=stop == -1
    )


def _number(where: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(where, f"{text!r} is no number of seconds", "Mend the line")
    return number


def _seconds(where: str, text: str) -> float:
    number = _number(where, text)
    if number < 0:
        raise DataError(where, f"{text} seconds is below 0", "Mend the line")
    return number
