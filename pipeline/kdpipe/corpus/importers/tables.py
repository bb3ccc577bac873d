"""Tables of a key and the rest of the line, as Kaldi, LibriSpeech and AISHELL write them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kdpipe.errors import DataError, InputNotFoundError

__all__ = ["read_table", "table_lines"]


def table_lines(path: Path) -> Iterator[tuple[str, str, str]]:
    """(where, key, rest) of every line that is not blank; `where` is for messages.

    Raises `InputNotFoundError` for a missing file, `DataError` for one that is not UTF-8.
    """
    if not path.is_file():
        raise InputNotFoundError(path, "table", "Check that the corpus is complete")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(str(path), f"not UTF-8 ({error.reason})", "Convert it to UTF-8") from error
    # Not splitlines: a text may hold characters that it takes for line ends.
    for number, line in enumerate(text.split("\n"), start=1):
        key, *rest = line.strip().split(maxsplit=1)[:2] or [""]
        if key:
            yield f"{path}:{number}", key, rest[0] if rest else ""


def read_table(path: Path) -> dict[str, str]:
    """key -> rest; `DataError` naming the line where a key comes again."""
    table: dict[str, str] = {}
    for where, key, rest in table_lines(path):
        if key in table:
            raise DataError(where, f"{key} comes twice", "Remove one of the lines")
        table[key] = rest
    return table
