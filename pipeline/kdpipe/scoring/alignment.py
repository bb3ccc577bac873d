"""A hypothesis beside its reference, unit by unit, for people to read."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal, get_args

import jiwer

from kdpipe.scoring.errors import Unit

__all__ = ["AlignedUnit", "align_units"]

Fate = Literal["equal", "substitute", "delete", "insert"]
FATES: dict[str, Fate] = {name: name for name in get_args(Fate)}
"""jiwer's names of the four."""


@dataclass(frozen=True)
class AlignedUnit:
    """One column of an alignment; `hypothesis` is empty where the unit was deleted, `reference`
    where it was inserted."""

    fate: Fate
    reference: str
    hypothesis: str


def align_units(reference: str, hypothesis: str, unit: Unit = "word") -> list[AlignedUnit]:
    """Words, or characters but for spaces, of a minimum edit distance alignment (jiwer's)."""
    between = " " if unit == "word" else ""
    texts = [between.join(text.split()) for text in (reference, hypothesis)]
    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    output = process(texts[0], texts[1])
    spoken, heard = output.references[0], output.hypotheses[0]
    return [
        AlignedUnit(FATES[chunk.type], said, got)
        for chunk in output.alignments[0]
        for said, got in _columns(chunk, spoken, heard)
    ]


def _columns(chunk: Any, spoken: list[str], heard: list[str]) -> list[tuple[str, str]]:
    said = spoken[chunk.ref_start_idx : chunk.ref_end_idx]
    got = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
    return list(zip_longest(said, got, fillvalue=""))
