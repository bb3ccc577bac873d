"""One split of prepared data: streamed, resumable, then indexed.

While a split is being made its folder holds `features.npy.part` and `journal.jsonl`, one line
for every finished chunk, written after the chunk's features are on the disk. An interrupted
run goes on behind the last line.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from kdpipe.corpus.utterance import Utterance
from kdpipe.errors import DataError, TooManyRejectedError
from kdpipe.features.speed import speed_id
from kdpipe.features.split_files import FEATURES, feature_header, write_index
from kdpipe.files import read_json, read_jsonl, write_json, write_jsonl
from kdpipe.parallel import WorkerPool
from kdpipe.progress import progress_bar
from kdpipe.stages.prepare_worker import (
    Chunk,
    ChunkResult,
    ChunkSettings,
    file_stamp,
    process_chunk,
)

__all__ = ["make_split", "split_rejections"]

CHUNK_UTTERANCES = 32
JOURNAL = "journal.jsonl"
REJECTED = "rejected.jsonl"
SUMMARY = "split.json"
REMAKE = "Remove the folder, or give another --out"


@dataclass
class _Progress:
    """What the journal says is done: utterances before `stop`, and what came of them."""

    stop: int = 0
    journal_bytes: int = 0
    accepted: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)

    @property
    def frames(self) -> int:
        return sum(record["num_frames"] for record in self.accepted)


def make_split(
    folder: Path,
    utterances: Sequence[Utterance],
    settings: ChunkSettings,
    pool: WorkerPool,
    max_rejected: float,
) -> dict[str, Any]:
    """Write the split `folder` unless it is there already; return its summary.

    Raises `TooManyRejectedError` when more than the fraction `max_rejected` of the entries, or
    all of them, cannot be used; what was computed stays for the next run.
    """
    if (folder / SUMMARY).is_file():
        return _read_summary(folder)
    folder.mkdir(exist_ok=True)
    unique, duplicates = _without_duplicates(utterances, settings.speeds)
    done = _compute(folder, unique, settings, pool)
    rejected = [*duplicates, *done.rejected]
    write_jsonl(folder / REJECTED, rejected)
    reasons = Counter(str(record["reason"]) for record in rejected)
    total = len(done.accepted) + len(rejected)
    if len(rejected) > max_rejected * total or not done.accepted:
        raise TooManyRejectedError(folder.name, len(rejected), total, max_rejected, reasons)
    return _finish(folder, done, reasons, settings.filterbank.dim)


def split_rejections(folder: Path) -> list[dict[str, Any]]:
    """The utterances of a split that could not be used: split, id, reason, detail, file."""
    path = folder / REJECTED
    records = read_jsonl(path) if path.is_file() else ()
    return [
        {"split": folder.name, **{k: v for k, v in record.items() if k != "stamp"}}
        for record in records
    ]


def _read_summary(folder: Path) -> dict[str, Any]:
    summary = read_json(folder / SUMMARY)
    if not isinstance(summary, dict):
        raise DataError(str(folder / SUMMARY), "not a split's summary", REMAKE)
    return summary


def _without_duplicates(
    utterances: Sequence[Utterance], speeds: Sequence[float]
) -> tuple[list[Utterance], list[dict[str, Any]]]:
    """The utterances whose entries' ids are new, and rejections for the others."""
    seen: set[str] = set()
    unique: list[Utterance] = []
    duplicates: list[dict[str, Any]] = []
    for utterance in utterances:
        entry_ids = {speed_id(utterance.id, speed) for speed in speeds}
        if entry_ids.isdisjoint(seen):
            unique.append(utterance)
            seen |= entry_ids
        else:
            duplicates += [_duplicate(utterance, speed) for speed in speeds]
    return unique, duplicates


def _duplicate(utterance: Utterance, speed: float) -> dict[str, Any]:
    return {
        "id": speed_id(utterance.id, speed),
        "reason": "duplicate-id",
        "detail": "the first with this id is kept",
        "audio_filepath": str(utterance.audio),
    }


def _compute(
    folder: Path, utterances: Sequence[Utterance], settings: ChunkSettings, pool: WorkerPool
) -> _Progress:
    done = _read_journal(folder / JOURNAL)
    chunks = _chunks(utterances, done.stop, settings)
    with (
        _open_part(folder, done.frames, settings.filterbank.dim) as features,
        _open_at(folder / JOURNAL, done.journal_bytes) as journal,
        progress_bar(len(utterances), f"prepare {folder.name}", done=done.stop) as bar,
    ):
        for result in pool.map(process_chunk, chunks):
            _append(features, result.features.tobytes())
            _append(journal, _journal_line(result))
            bar.update(result.stop - done.stop)
            _advance(done, result.stop, result.accepted, result.rejected)
    return done


def _chunks(
    utterances: Sequence[Utterance], start: int, settings: ChunkSettings
) -> Iterator[Chunk]:
    for first in range(start, len(utterances), CHUNK_UTTERANCES):
        yield Chunk(first, tuple(utterances[first : first + CHUNK_UTTERANCES]), settings)


def _advance(
    done: _Progress, stop: int, accepted: list[dict[str, Any]], rejected: list[dict[str, Any]]
) -> None:
    done.stop = stop
    done.accepted += accepted
    done.rejected += rejected


def _read_journal(path: Path) -> _Progress:
    """The finished chunks, up to a torn line or the first whose rejected audio has changed."""
    done = _Progress()
    if not path.is_file():
        return done
    with path.open("rb") as handle:
        for line in handle:
            if not line.endswith(b"\n"):
                break
            record = json.loads(line)
            if any(_was_mended(rejection) for rejection in record["rejected"]):
                break
            _advance(done, record["stop"], record["accepted"], record["rejected"])
            done.journal_bytes += len(line)
    return done


def _was_mended(rejection: Mapping[str, Any]) -> bool:
    stamp: list[int] | None = rejection["stamp"]
    return file_stamp(Path(rejection["audio_filepath"])) != stamp


def _journal_line(result: ChunkResult) -> bytes:
    record = {"stop": result.stop, "accepted": result.accepted, "rejected": result.rejected}
    return json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n"


def _open_part(folder: Path, frames: int, dim: int) -> BinaryIO:
    """The features (frames, dim) so far, float16, behind room for the header."""
    path = folder / f"{FEATURES}.part"
    if (folder / FEATURES).is_file():
        # Interrupted while finishing: everything is computed, and finishes again.
        (folder / FEATURES).replace(path)
    header = feature_header(0, dim)
    if not frames:
        path.write_bytes(header)
    return _open_at(path, len(header) + frames * 2 * dim)


def _open_at(path: Path, size: int) -> BinaryIO:
    """Open for appending behind the first `size` bytes; what follows them is cut off."""
    path.touch()
    if path.stat().st_size < size:
        raise DataError(str(path), f"shorter than the {size} bytes that were written", REMAKE)
    handle = path.open("r+b")
    handle.truncate(size)
    handle.seek(size)
    return handle


def _append(handle: BinaryIO, content: bytes) -> None:
    handle.write(content)
    handle.flush()
    os.fsync(handle.fileno())


def _finish(folder: Path, done: _Progress, reasons: Mapping[str, int], dim: int) -> dict[str, Any]:
    part = folder / f"{FEATURES}.part"
    with part.open("r+b") as handle:
        _append(handle, feature_header(done.frames, dim))
    part.replace(folder / FEATURES)
    write_index(folder, done.accepted)
    summary = {
        "utterances": len(done.accepted),
        "frames": done.frames,
        "seconds": round(sum(record["duration"] for record in done.accepted), 3),
        "tokens": sum(len(record["tokens"]) for record in done.accepted),
        "unlabelled": sum(record["text"] is None for record in done.accepted),
        "rejected": dict(sorted(reasons.items())),
        "manifest_digest": _manifest_digest(done.accepted),
        "content_digest": _content_digest(folder / FEATURES),
    }
    write_json(folder / SUMMARY, summary)
    (folder / JOURNAL).unlink(missing_ok=True)
    return summary


def _content_digest(features: Path) -> str:
    """Hex SHA-256 of the features: the same manifest may stand for other recordings."""
    with features.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _manifest_digest(records: Sequence[Mapping[str, Any]]) -> str:
    """Hex SHA-256 over ids, frame counts and texts, in order; not over where the audio lies."""
    digest = hashlib.sha256()
    for record in records:
        fields = [record["id"], record["num_frames"], record["text"]]
        digest.update(json.dumps(fields, ensure_ascii=False).encode("utf-8") + b"\n")
    return digest.hexdigest()
