"""Which utterances go into which split of `kdpipe prepare`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kdpipe.corpus.importers import CorpusKind, find_splits, read_split
from kdpipe.corpus.manifest import read_manifest
from kdpipe.corpus.utterance import Utterance
from kdpipe.errors import ConfigError, InputNotFoundError

__all__ = ["Corpus", "SplitNames", "read_splits"]

ROLES = {
    "train": re.compile(r"train(?![_-]?(dev|val))", re.IGNORECASE),
    "dev": re.compile(r"(train[_-]?)?(dev|val)", re.IGNORECASE),
    "test": re.compile(r"test|eval", re.IGNORECASE),
}
"""How names of splits begin; `train_dev` is ESPnet's and Kaldi's part that is held out."""
FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Corpus:
    """A corpus in a layout of its own."""

    kind: CorpusKind
    root: Path


@dataclass(frozen=True)
class SplitNames:
    """Manifests, or a corpus's own split names; several for train or dev are joined."""

    train: tuple[str, ...] = ()
    dev: tuple[str, ...] = ()
    test: tuple[str, ...] = ()


def read_splits(names: SplitNames, corpus: Corpus | None) -> dict[str, list[Utterance]]:
    """The utterances of the splits "train", "dev", "test" and further test sets.

    Without a `corpus` the names are manifests. With one they are its split names; where none
    is given, every split goes where its name begins: train, dev (or valid, train_dev), test (or
    eval). The first test set is "test", each further one is named as its manifest or split.
    Raises `InputNotFoundError`, `DataError` or `ConfigError` naming what is wrong.
    """
    if corpus is None:
        return _collect(names, lambda name: read_manifest(Path(name)))
    found = find_splits(corpus.kind, corpus.root)
    chosen = names if any((names.train, names.dev, names.test)) else _by_prefix(found, corpus)
    return _collect(chosen, lambda name: _read_named(corpus, found, name))


def _read_named(corpus: Corpus, found: dict[str, Path], name: str) -> list[Utterance]:
    if name not in found:
        raise InputNotFoundError(
            corpus.root / name, "split of that name", f"There is: {', '.join(found)}"
        )
    return read_split(corpus.kind, found[name])


def _by_prefix(found: dict[str, Path], corpus: Corpus) -> SplitNames:
    roles = {
        role: tuple(name for name in found if begins.match(name)) for role, begins in ROLES.items()
    }
    if not any(roles.values()):
        raise InputNotFoundError(
            corpus.root,
            "split that is named train, dev or test",
            f"Choose with --train from: {', '.join(found)}",
        )
    return SplitNames(**roles)


def _collect(
    names: SplitNames, read: Callable[[str], list[Utterance]]
) -> dict[str, list[Utterance]]:
    splits = {}
    for role, parts in (("train", names.train), ("dev", names.dev)):
        if parts:
            splits[role] = [utterance for part in parts for utterance in read(part)]
    for position, name in enumerate(names.test):
        folder = "test" if position == 0 else _folder_name(name)
        # A test set of the training split's name would be made at its speeds.
        if folder == "train" or folder in splits:
            raise ConfigError("prepare", "test", name, "its name is taken", "Rename the manifest")
        splits[folder] = read(name)
    return splits


def _folder_name(name: str) -> str:
    stem = Path(name).stem if name.endswith((".jsonl", ".json")) else Path(name).name
    if not FOLDER_NAME.fullmatch(stem):
        raise ConfigError("prepare", "test", name, "no name for a folder", "Rename the manifest")
    return stem
