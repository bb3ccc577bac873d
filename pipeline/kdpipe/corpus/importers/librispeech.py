"""LibriSpeech as distributed: SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt beside audio."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kdpipe.corpus.durations import header_durations
from kdpipe.corpus.importers.tables import table_lines
from kdpipe.corpus.utterance import Utterance
from kdpipe.errors import InputNotFoundError

__all__ = ["find_splits", "read_split"]

# The distribution is FLAC; converted copies keep the layout.
SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")
TRANSCRIPTS = "*/*/*.trans.txt"


def find_splits(root: Path) -> dict[str, Path]:
    """`root` is the folder of the splits (LibriSpeech/), the one above it, or one split."""
    for folder in (root, root / "LibriSpeech"):
        splits = {
            path.name: path
            for path in (sorted(folder.iterdir()) if folder.is_dir() else ())
            if path.is_dir() and next(path.glob(TRANSCRIPTS), None) is not None
        }
        if splits:
            return splits
    if root.is_dir() and next(root.glob(TRANSCRIPTS), None) is not None:
        return {root.name: root}
    raise InputNotFoundError(
        root, "LibriSpeech layout (SPLIT/SPEAKER/CHAPTER/*.trans.txt)", "Give its top folder"
    )


def read_split(path: Path) -> list[Utterance]:
    """Utterances by id; the speaker is the first part of it."""
    rows = sorted(_rows(path))
    durations = header_durations([audio for _, _, audio in rows], f"read {path.name}")
    return [
        Utterance(identifier, audio, duration, text, identifier.split("-")[0], measured=True)
        for (identifier, text, audio), duration in zip(rows, durations, strict=True)
    ]


def _rows(split: Path) -> Iterator[tuple[str, str, Path]]:
    for transcripts in split.glob(TRANSCRIPTS):
        present = {item.name for item in transcripts.parent.iterdir()}
        for _, identifier, text in table_lines(transcripts):
            suffix = next((s for s in SUFFIXES if identifier + s in present), SUFFIXES[0])
            yield identifier, text, transcripts.parent / f"{identifier}{suffix}"
