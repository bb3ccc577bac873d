"""AISHELL-1 as distributed: transcript/aishell_transcript_v0.8.txt, wav/{train,dev,test}."""

from __future__ import annotations

from pathlib import Path

from kdpipe.corpus.durations import header_durations
from kdpipe.corpus.importers.tables import read_table
from kdpipe.corpus.utterance import Utterance
from kdpipe.errors import InputNotFoundError

__all__ = ["find_splits", "read_split"]

TRANSCRIPT = Path("transcript/aishell_transcript_v0.8.txt")
NAMES = ("train", "dev", "test")


def find_splits(root: Path) -> dict[str, Path]:
    """`root` is data_aishell/ or the folder above it."""
    for folder in (root, root / "data_aishell"):
        splits = {name: folder / "wav" / name for name in NAMES if (folder / "wav" / name).is_dir()}
        if splits and (folder / TRANSCRIPT).is_file():
            return splits
    raise InputNotFoundError(
        root, f"AISHELL-1 layout ({TRANSCRIPT}, wav/train)", "Give data_aishell, wav unpacked"
    )


def read_split(path: Path) -> list[Utterance]:
    """Utterances by id, the transcript's word spaces taken out; the folder is the speaker.

    The corpus has some recordings without a transcript; they are left out, as everywhere.
    """
    texts = read_table(path.parents[1] / TRANSCRIPT)
    files = sorted((p for p in path.glob("*/*.wav") if p.stem in texts), key=lambda p: p.stem)
    durations = header_durations(files, f"read {path.name}")
    return [
        Utterance(
            file.stem,
            file,
            duration,
            "".join(texts[file.stem].split()),
            file.parent.name,
            measured=True,
        )
        for file, duration in zip(files, durations, strict=True)
    ]
