"""Progress bars with rate and ETA on stderr; quiet when it is not a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import NoReturn, TypeVar

from tqdm import tqdm

__all__ = ["progress", "progress_bar"]

T = TypeVar("T")


def progress(items: Iterable[T], total: int, label: str, unit: str = "utt") -> Iterable[T]:
    """Wrap `items` in a bar on stderr, shown only on a terminal."""
    return tqdm(
        items, total=total, desc=label, unit=unit, disable=not sys.stderr.isatty(), leave=False
    )


def progress_bar(total: int | float, label: str, unit: str = "utt") -> tqdm[NoReturn]:
    """A bar advanced by hand (`bar.update(n)`), a context manager."""
    return tqdm(
        total=total,
        desc=label,
        unit=unit,
        unit_scale=True,
        disable=not sys.stderr.isatty(),
        leave=False,
    )
