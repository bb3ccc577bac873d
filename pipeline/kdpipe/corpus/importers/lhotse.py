"""Lhotse cut manifests: JSON lines, plain or gzipped, of MonoCuts over audio files."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdpipe.corpus.utterance import Utterance
from kdpipe.errors import DataError, InputNotFoundError

__all__ = ["find_splits", "read_split"]

SUFFIXES = (".jsonl.gz", ".jsonl")
REMEDY = "Save plain cuts over audio files first (CutSet.save_audios), and give those"
# Cuts are cut by samples and rounded: no part is shorter than a millisecond (s).
TOLERANCE = 1e-3


def find_splits(root: Path) -> dict[str, Path]:
    """`root` is a cuts file, or a folder of them; `corpus_cuts_train.jsonl.gz` is "train".

    Raises `DataError` for two files of one split: neither may stand for the other.
    """
    files = [root] if root.is_file() else _cut_files(root)
    if not files or not files[0].name.endswith(SUFFIXES):
        raise InputNotFoundError(root, "Lhotse cuts (*cuts*.jsonl[.gz])", "Give them, or a folder")
    found: dict[str, Path] = {}
    for path in files:
        other = found.setdefault(_split_name(path), path)
        if other != path:
            raise DataError(
                str(root), f"{other.name} and {path.name} are both the split {_split_name(path)}",
                "Rename one behind its `cuts` (cuts_train-b), or move it out of the folder",
            )  # fmt: skip
    return found


def _cut_files(folder: Path) -> list[Path]:
    names = sorted(folder.glob("*cuts*")) if folder.is_dir() else []
    return [path for path in names if path.name.endswith(SUFFIXES)]


def _split_name(path: Path) -> str:
    stem = next(path.name.removesuffix(s) for s in SUFFIXES if path.name.endswith(s))
    name = stem.rpartition("cuts")[2].strip("._-")
    return name or stem.replace("cuts", "").strip("._-") or stem


def read_split(path: Path) -> list[Utterance]:
    """One utterance a cut, or one a supervision where a cut has several.

    Relative audio paths are tried from the manifest's folder, then from the current one, as
    Lhotse's own. Cuts that are not a plain part of one audio file (mixed, padded, perturbed on
    the fly, of one channel among several) are refused: what they sound like is not on the disk.
    """
    utterances: list[Utterance] = []
    for where, cut in _cuts(path):
        try:
            utterances += _cut_utterances(cut, path.parent, where)
        except DataError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            raise DataError(where, f"not a Lhotse MonoCut ({error!r})", REMEDY) from error
    return utterances


def _cuts(path: Path) -> Iterator[tuple[str, Any]]:
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
            for number, line in enumerate(handle, start=1):
                if line.strip():
                    yield f"{path}:{number}", json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}:{number}", f"not JSON lines ({error})", REMEDY) from error


def _cut_utterances(cut: Mapping[str, Any], folder: Path, where: str) -> list[Utterance]:
    _require_plain(cut, where)
    audio = _audio_path(cut["recording"]["sources"][0], folder, where)
    total, start = float(cut["recording"]["duration"]), float(cut["start"])
    supervisions = cut.get("supervisions", [])
    whole = _utterance(cut["id"], audio, start, float(cut["duration"]), total, {})
    if not supervisions:
        return [whole]
    names = [cut["id"]] if len(supervisions) == 1 else [s["id"] for s in supervisions]
    return [
        _utterance(name, audio, start + float(s["start"]), float(s["duration"]), total, s)
        for name, s in zip(names, supervisions, strict=True)
    ]


def _require_plain(cut: Mapping[str, Any], where: str) -> None:
    if cut.get("type", "MonoCut") != "MonoCut":
        raise DataError(where, f"a {cut['type']}, not a MonoCut", REMEDY)
    recording = cut["recording"]
    if recording.get("transforms"):
        raise DataError(where, "its recording is transformed on the fly", REMEDY)
    sources = recording["sources"]
    if len(sources) != 1 or len(sources[0]["channels"]) != 1:
        raise DataError(where, "one channel of a recording with several", REMEDY)


def _audio_path(source: Mapping[str, Any], folder: Path, where: str) -> Path:
    if source["type"] != "file":
        raise DataError(where, f"its audio is a {source['type']}, not a file", REMEDY)
    inside = folder / source["source"]
    return inside if inside.exists() else Path(source["source"]).absolute()


def _utterance(
    identifier: Any,
    audio: Path,
    start: float,
    duration: float,
    total: float,
    labels: Mapping[str, Any],
) -> Utterance:
    text, speaker = labels.get("text"), labels.get("speaker")
    if not all(isinstance(value, str | None) for value in (text, speaker)):
        raise ValueError(f"text {text!r}, speaker {speaker!r}")
    if not (math.isfinite(start + duration + total) and duration > 0 and start > -TOLERANCE):
        raise ValueError(f"start {start}, duration {duration}")
    whole = start <= TOLERANCE and abs(total - duration) <= TOLERANCE
    offset = 0.0 if whole else max(start, 0.0)
    return Utterance(str(identifier), audio, duration, text, speaker, offset, not whole)
