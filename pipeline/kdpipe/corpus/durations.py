"""Durations for corpora that do not state them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import soundfile

from kdpipe.progress import progress

__all__ = ["header_durations"]

# Opening files waits for the disk, on shared ones for the network.
THREADS = 8


def header_durations(paths: Sequence[Path], label: str) -> list[float]:
    """Seconds that each file's header promises.

    0.0 for a file that is missing or unreadable: `kdpipe prepare` then rejects it by name,
    and the others are still used.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        return list(progress(pool.map(_header_duration, paths), len(paths), label, "file"))


def _header_duration(path: Path) -> float:
    try:
        return float(soundfile.info(str(path)).duration)
    except (soundfile.LibsndfileError, OSError):
        return 0.0
