"""Corpora in the layouts they are distributed in, as utterance records.

Every module has `find_splits(root)`, the parts a corpus has by name and without reading them,
and `read_split(path)`, the utterances of one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from kdpipe.corpus.importers import aishell1, kaldi, lhotse, librispeech
from kdpipe.corpus.utterance import Utterance

__all__ = ["CorpusKind", "find_splits", "read_split"]

CorpusKind = Literal["librispeech", "aishell1", "kaldi", "lhotse"]
FIND: dict[CorpusKind, Callable[[Path], dict[str, Path]]] = {
    "librispeech": librispeech.find_splits,
    "aishell1": aishell1.find_splits,
    "kaldi": kaldi.find_splits,
    "lhotse": lhotse.find_splits,
}
READ: dict[CorpusKind, Callable[[Path], list[Utterance]]] = {
    "librispeech": librispeech.read_split,
    "aishell1": aishell1.read_split,
    "kaldi": kaldi.read_split,
    "lhotse": lhotse.read_split,
}


def find_splits(kind: CorpusKind, root: Path) -> dict[str, Path]:
    """The corpus's own split names and where each lies.

    Raises `InputNotFoundError` when nothing at `root` has the layout.
    """
    return FIND[kind](root.absolute())


def read_split(kind: CorpusKind, path: Path) -> list[Utterance]:
    """The utterances of one split that `find_splits` found.

    Raises `DataError` naming the line of a table that is not as the layout says.
    """
    return READ[kind](path)
