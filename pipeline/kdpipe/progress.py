"""Progress bars with rate and ETA on stderr; none when that is not a terminal or not wanted."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NoReturn, TypeVar

from tqdm import tqdm

__all__ = ["progress", "progress_bar", "progress_shown"]

T = TypeVar("T")

_WANTED: ContextVar[bool] = ContextVar("progress wanted", default=True)


@contextmanager
def progress_shown(wanted: bool) -> Iterator[None]:
    """Show bars in the block, or none even on a terminal."""
    token = _WANTED.set(wanted)
    try:
        yield
    finally:
        _WANTED.reset(token)


def progress(items: Iterable[T], total: int, label: str, unit: str = "utt") -> Iterable[T]:
    """Wrap `items` in a bar on stderr, shown only on a terminal."""
    return tqdm(items, total=total, desc=label, unit=unit, disable=_hidden(), leave=False)


def progress_bar(
    total: int | float, label: str, unit: str = "utt", done: int = 0
) -> tqdm[NoReturn]:
    """A bar advanced by hand (`bar.update(n)`), a context manager.

    `done` units are of an earlier run: they count for the end, not for the rate.
    """
    return tqdm(
        total=total, desc=label, unit=unit, unit_scale=True, initial=done, disable=_hidden(),
        leave=False,
    )  # fmt: skip


def _hidden() -> bool:
    return not (_WANTED.get() and sys.stderr.isatty())
