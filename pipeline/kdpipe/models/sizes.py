"""Parameter counts of the named sizes beside those that the paper prints."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kdpipe.models.config import Kind, SizeName, size_by_name, size_names
from kdpipe.models.recognition import RecognitionModel, count_parameters

__all__ = ["PAPER_MILLIONS", "SizeRow", "size_table"]

# Table 2 of the paper: parameters in millions, and the vocabulary at which they come out.
PAPER_MILLIONS: dict[SizeName, tuple[float, int]] = {
    "L": (115.0, 4233),
    "M": (46.8, 5000),
    "S": (12.4, 4233),
    "XS": (6.5, 4233),
}


@dataclass(frozen=True, slots=True)
class SizeRow:
    """One named size: its parameters at `vocab_size`, and the paper's figure.

    `at_paper_vocab` counts the same size at the vocabulary `paper_vocab`, where it rounds to
    the paper's figure: what differs at another vocabulary is its embedding, output and CTC
    layers.
    """

    name: SizeName
    vocab_size: int
    parameters: int
    paper_millions: float
    paper_vocab: int
    at_paper_vocab: int


def size_table(vocab_size: int, kind: Kind = "ar") -> list[SizeRow]:
    """Counts of every named size, largest first, without allocating any weights."""
    rows = []
    for name in size_names():
        millions, paper_vocab = PAPER_MILLIONS[name]
        count, paper_count = _count(name, vocab_size, kind), _count(name, paper_vocab, kind)
        rows.append(SizeRow(name, vocab_size, count, millions, paper_vocab, paper_count))
    return rows


def _count(name: SizeName, vocab_size: int, kind: Kind) -> int:
    with torch.device("meta"):
        return count_parameters(RecognitionModel(size_by_name(name, vocab_size, kind)))
