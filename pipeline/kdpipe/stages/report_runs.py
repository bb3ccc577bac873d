"""What lies in the folders that `kdpipe report` is given, each recognised by its content."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kdpipe.errors import InputNotFoundError
from kdpipe.store.hdf5_backend import MAGIC
from kdpipe.store.zarr_backend import MAX_METADATA

__all__ = ["FoundRun", "RunKind", "find_runs", "run_kind"]

RunKind = Literal["model", "decode", "store", "data"]
MARKS: tuple[tuple[RunKind, str, frozenset[str]], ...] = (
    ("model", "model.toml", frozenset({"format_version"})),
    ("decode", "score.json", frozenset({"split"})),
    ("data", "data.json", frozenset({"format_version", "splits"})),
)
"""Files of which each makes a folder a run of its kind, and keys that no stranger's has."""
LOG = "train.jsonl"
RECORD_TYPES = ("step", "epoch")
LONGEST_RECORD = 1 << 16
"""Bytes of a file's first line that are read to tell a training log from a manifest."""
STORE_MARK = b'"kdpipe_store"'
"""The attribute of a Zarr group that makes it a store."""
STORE_SUFFIXES = (".zarr", ".h5", ".hdf5")
DEPTH = 4
"""Levels of folders below a RUN that are searched."""
KINDS_SAID = "a model, a decode output, a teacher store, prepared data, or a folder of them"


@dataclass(frozen=True)
class FoundRun:
    """A run and the name it goes by: its folder's, with as many parents as tell it apart."""

    kind: RunKind
    path: Path
    name: str


def run_kind(path: Path) -> RunKind | None:
    """What `path` is by its content; None for anything else."""
    if path.suffix in STORE_SUFFIXES:
        return "store" if _holds_store(path) else None
    if _is_training_log(path / LOG):
        return "model"
    return next((kind for kind, name, keys in MARKS if _is_ours(path / name, keys)), None)


def _is_ours(path: Path, keys: frozenset[str]) -> bool:
    """Whether a file is there and has the keys; one that cannot be read passes, to be named."""
    if not path.is_file():
        return False
    try:
        content = path.read_bytes()
        table: object = (
            tomllib.loads(content.decode()) if path.suffix == ".toml" else json.loads(content)
        )
    except (OSError, ValueError, RecursionError):
        return True
    if not isinstance(table, dict):
        return False
    # A Hugging Face teacher's model.toml says its kind first.
    return keys <= table.keys() or (path.suffix == ".toml" and "kind" in table)


def _is_training_log(path: Path) -> bool:
    """Whether the first whole line is a record of a training.

    The name alone does not tell: manifests are called train.jsonl too, and may be huge.
    """
    if not path.is_file():
        return False
    with path.open("rb") as handle:
        line = handle.readline(LONGEST_RECORD)
    try:
        record: object = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return False
    return isinstance(record, dict) and record.get("type") in RECORD_TYPES


def _holds_store(path: Path) -> bool:
    """A finished store, or the working files of one that is still being written.

    By its mark alone, so that a damaged store is still one: others' arrays have these suffixes too.
    """
    if path.suffix != ".zarr":
        return path.is_file() and _begins(path, len(MAGIC)) == MAGIC
    root = path / "zarr.json"
    marked = root.is_file() and STORE_MARK in _begins(root, MAX_METADATA)
    return marked or (path / "journal").is_dir()


def _begins(path: Path, size: int) -> bytes:
    with path.open("rb") as handle:
        return handle.read(size)


def find_runs(paths: Sequence[Path]) -> list[FoundRun]:
    """Every run that `paths` are or hold, each once, in the order of their paths.

    Raises `InputNotFoundError` for a path that is no run and holds none.
    """
    found: dict[Path, tuple[RunKind, Path]] = {}
    for path in paths:
        inside = list(_search(path, DEPTH))
        if not inside:
            raise InputNotFoundError(path, "run", f"Name {KINDS_SAID}")
        for kind, place in inside:
            found.setdefault(place.resolve(), (kind, place))
    places = sorted(found)
    names = _names(places)
    return [FoundRun(found[place][0], found[place][1], names[place]) for place in places]


def _search(path: Path, depth: int) -> Iterator[tuple[RunKind, Path]]:
    kind = run_kind(path)
    if kind is not None:
        yield kind, path
    elif depth and path.is_dir():
        for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
            if not entry.name.startswith(".") and _may_hold(entry):
                yield from _search(Path(entry.path), depth - 1)


def _may_hold(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir() or Path(entry.name).suffix in STORE_SUFFIXES


def _names(places: Sequence[Path]) -> dict[Path, str]:
    """The last parts of each path, as few as make the names differ."""
    names = {place: place.name for place in places}
    for parts in range(2, 2 + DEPTH):
        taken = list(names.values())
        doubles = {place for place, name in names.items() if taken.count(name) > 1}
        names |= {place: "/".join(place.parts[-parts:]) for place in doubles}
    return names
