"""Manifests: one JSON object a line (the NeMo convention).

`{"id": "a", "audio_filepath": "a.flac", "duration": 1.0, "text": "YES", "speaker": "s"}`.
`audio_filepath` is absolute or relative to the manifest; `id` defaults to the file's stem;
`text`, `speaker` and `offset` (seconds) may be absent. Other keys are passed over.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from kdpipe.corpus.utterance import Utterance
from kdpipe.errors import DataError, InputNotFoundError
from kdpipe.files import read_jsonl, write_jsonl

__all__ = ["read_manifest", "write_manifest"]


def read_manifest(path: Path | str) -> list[Utterance]:
    """The utterances of a JSON-lines manifest, in its order; durations and offsets in seconds.

    Each line has `audio_filepath` (absolute or relative to the manifest) and `duration`, and may
    have `id` (default: the file's stem), `text`, `speaker` and `offset`; other keys are passed
    over. Raises `InputNotFoundError` for a missing or empty manifest, and `DataError` naming the
    record for a line that is no such object. Files that a record names are not looked at, and
    ids may repeat: `kdpipe prepare` rejects such utterances one by one.
    """
    path = Path(path).absolute()
    if not path.is_file():
        raise InputNotFoundError(path, "manifest", "Give a JSON-lines manifest")
    try:
        records = enumerate(read_jsonl(path), start=1)
        utterances = [_parse_record(r, path.parent, f"{path}: record {n}") for n, r in records]
    except UnicodeDecodeError as error:
        remedy = "Give a JSON-lines manifest in UTF-8"
        raise DataError(str(path), f"not UTF-8 ({error.reason})", remedy) from error
    if not utterances:
        raise InputNotFoundError(path, "utterance", "It is empty: write one JSON object a line")
    return utterances


def write_manifest(path: Path, utterances: Iterable[Utterance]) -> None:
    """Write a manifest atomically; audio below its folder is named relative to it."""
    folder = path.absolute().parent
    write_jsonl(path, (_to_record(utterance, folder) for utterance in utterances))


def _parse_record(record: Mapping[str, object], folder: Path, where: str) -> Utterance:
    audio = _text(record, "audio_filepath", where)
    if not audio:
        raise DataError(where, "no audio_filepath", "Add it: the path of the speech")
    identifier = _text(record, "id", where)
    return Utterance(
        id=Path(audio).stem if identifier is None else _checked_id(identifier, where),
        audio=folder / audio,
        duration=_seconds(record, "duration", where),
        text=_text(record, "text", where),
        speaker=_text(record, "speaker", where),
        offset=_seconds(record, "offset", where) if "offset" in record else 0.0,
        segment="offset" in record,
    )


def _text(record: Mapping[str, object], key: str, where: str) -> str | None:
    value = record.get(key)
    if value is not None and not isinstance(value, str):
        raise DataError(where, f"{key} is not a string: {reprlib.repr(value)}", "Quote it")
    if value is not None and not _encodes(value):
        problem = f"{key} is no Unicode text: {reprlib.repr(value)}"
        raise DataError(where, problem, "Mend its \\u escapes")
    return value


def _encodes(text: str) -> bool:
    """Whether UTF-8 can write it: JSON's \\u can spell half of a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _checked_id(identifier: str, where: str) -> str:
    if not identifier or identifier != identifier.strip() or not identifier.isprintable():
        raise DataError(where, f"unusable id {identifier!r}", "Give printable, trimmed ids")
    return identifier


def _seconds(record: Mapping[str, object], key: str, where: str) -> float:
    value = record.get(key)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        seconds = float(value) if number else math.nan  # type: ignore[arg-type]
    except OverflowError:
        seconds = math.inf
    if not 0 <= seconds < math.inf:
        problem = f"{key} is no number of seconds: {reprlib.repr(value)}"
        raise DataError(where, problem, "Give seconds >= 0")
    return seconds


def _to_record(utterance: Utterance, folder: Path) -> dict[str, object]:
    inside = utterance.audio.is_relative_to(folder)
    audio = utterance.audio.relative_to(folder) if inside else utterance.audio
    record: dict[str, object] = {
        "id": utterance.id,
        "audio_filepath": str(audio),
        "duration": utterance.duration,
        "text": utterance.text,
        "speaker": utterance.speaker,
        "offset": utterance.offset if utterance.segment else None,
    }
    return {key: value for key, value in record.items() if value is not None}
