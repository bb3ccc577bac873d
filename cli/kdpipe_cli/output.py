"""What a command says and where: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import platform
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from importlib.metadata import version
from typing import Any

import click

from kdpipe.errors import KdpipeError
from kdpipe.progress import progress_shown

__all__ = ["Verbosity", "answer", "complain", "detail", "say", "speaking"]

LEVEL = "kdpipe.verbosity"


class Verbosity(IntEnum):
    """How much a command says beside its results."""

    QUIET = 0
    NORMAL = 1
    VERBOSE = 2


@contextmanager
def speaking(level: Verbosity, settings: Mapping[str, Any]) -> Iterator[None]:
    """Say as much as `level` allows; a verbose command also says its settings and its time.

    A known error, which is one or two lines otherwise, then comes with its traceback.
    """
    click.get_current_context().meta[LEVEL] = level
    started = time.perf_counter()
    _describe(settings)
    with progress_shown(level > Verbosity.QUIET):
        try:
            yield
        except (KdpipeError, OSError):
            if level == Verbosity.VERBOSE:
                traceback.print_exc()
            raise
    detail(f"took {time.perf_counter() - started:.1f} s")


def _describe(settings: Mapping[str, Any]) -> None:
    versions = f"kdpipe {version('kdpipe')}, torch {version('torch')}"
    detail(f"{versions}, Python {platform.python_version()}, {os.cpu_count()} CPU cores")
    for name, value in settings.items():
        detail(f"  {name}: {_plain(value)}")


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_plain, value)) or "-"
    return "-" if value is None or value == "" else str(value)


def say(message: str) -> None:
    """A line about what happens, for people; not with --quiet."""
    _from(Verbosity.NORMAL, message)


def detail(message: str) -> None:
    """A line that only --verbose asks for."""
    _from(Verbosity.VERBOSE, message)


def _from(level: Verbosity, message: str) -> None:
    context = click.get_current_context(silent=True)
    chosen = Verbosity.NORMAL if context is None else context.meta.get(LEVEL, Verbosity.NORMAL)
    if chosen >= level:
        click.echo(message, err=True)


def answer(content: object, text: str, as_json: bool) -> None:
    """The result of a command: `content` as JSON, or `text` for people."""
    click.echo(json.dumps(content, indent=1, ensure_ascii=False) if as_json else text)


def complain(message: str, remedy: str) -> None:
    """An error in two lines on stderr: what is wrong, and how to mend it."""
    colour = False if os.environ.get("NO_COLOR") else None
    click.secho("Error: ", err=True, nl=False, fg="red", bold=True, color=colour)
    click.echo(f"{_sentence(message)}\n{_sentence(remedy)}", err=True)


def _sentence(text: str) -> str:
    """One line that ends as a sentence does, whatever a library's message brought along."""
    line = " ".join(text.split())
    return line if line.endswith((".", "?", "!", ".)", "?)")) else f"{line}."
