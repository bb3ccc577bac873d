"""Fenced code blocks of Markdown pages, and the kdpipe commands in them.

A block is preceded by a comment that says whether the tests run it: `<!-- run -->`, or
`<!-- not run: why -->`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Block", "inline_commands", "kdpipe_arguments", "read_blocks", "shell_commands"]

FENCE = re.compile(
    r"^(?P<indent> *)(?P<marks>`{3,})(?P<language>[\w-]*)(?: title=\"(?P<title>[^\"]+)\")?"
)
COMMENT = re.compile(r"^\s*<!--\s*(?P<mark>run|not run: .+?)\s*-->\s*$")
INLINE = re.compile(r"`(kdpipe [^`\n]+)`")
OPERATORS = set("|&;()<>")


@dataclass(frozen=True)
class Block:
    """One fenced block: where it is, its language, its text, its mark and title ("" for none)."""

    page: Path
    line: int
    language: str
    text: str
    mark: str
    title: str = ""

    @property
    def place(self) -> str:
        """`page:line`, for messages."""
        return f"{self.page}:{self.line}"

    @property
    def runs(self) -> bool:
        """Whether the tests run it."""
        return self.mark == "run"


def read_blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return list(_blocks(page, page.read_text(encoding="utf-8").splitlines()))


def _blocks(page: Path, lines: list[str]) -> Iterator[Block]:
    mark, number = "", 0
    while number < len(lines):
        fence = FENCE.match(lines[number])
        if fence is None:
            mark = _mark(lines[number], mark)
            number += 1
            continue
        end = _closing(lines, number, fence["marks"])
        text = "\n".join(line.removeprefix(fence["indent"]) for line in lines[number + 1 : end])
        yield Block(page, number + 1, fence["language"], text, mark, fence["title"] or "")
        mark, number = "", end + 1


def _closing(lines: list[str], opening: int, marks: str) -> int:
    for number in range(opening + 1, len(lines)):
        if lines[number].strip() == marks:
            return number
    raise ValueError(f"line {opening + 1}: the block is never closed")


def _mark(line: str, before: str) -> str:
    """The mark that holds after a line: a comment sets it, text takes it away."""
    comment = COMMENT.match(line)
    if comment is not None:
        return comment["mark"]
    return "" if line.strip() else before


def shell_commands(text: str) -> list[str]:
    """The lines of a shell block, continuations joined, without comments and empty lines."""
    joined = re.sub(r"\\\n\s*", "", text)
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def kdpipe_arguments(line: str) -> list[list[str]]:
    """The arguments of every `kdpipe ...` in one shell line."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= OPERATORS:
            commands.append([])
        else:
            commands[-1].append(word)
    return [words[words.index("kdpipe") + 1 :] for words in commands if "kdpipe" in words]


def inline_commands(page: Path) -> list[str]:
    """Commands in running text: `kdpipe decode --mode ctc`."""
    inside, found = False, []
    for line in page.read_text(encoding="utf-8").splitlines():
        if FENCE.match(line):
            inside = not inside
        elif not inside:
            found += INLINE.findall(line)
    return found
