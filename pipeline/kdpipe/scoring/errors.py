"""Word and character errors of hypotheses against references, paired by utterance id."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jiwer
import numpy as np
from numpy.typing import NDArray

from kdpipe.errors import DataError
from kdpipe.scoring.bootstrap import rate_interval

__all__ = ["ErrorCounts", "Unit", "UtteranceErrors", "align_pairs", "score_pairs", "uses_spaces"]

Unit = Literal["word", "char"]
Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class UtteranceErrors:
    """Errors of every utterance: arrays (N,) in the order of `ids`."""

    ids: tuple[str, ...]
    substitutions: Counts
    deletions: Counts
    insertions: Counts
    reference: Counts

    @property
    def errors(self) -> Counts:
        """(N,) S + D + I."""
        return self.substitutions + self.deletions + self.insertions


@dataclass(frozen=True)
class ErrorCounts:
    """Errors of a whole set, in words or characters.

    reference: units in the references. ci95: 95% interval of `rate` over resampled utterances.
    """

    substitutions: int
    deletions: int
    insertions: int
    reference: int
    ci95: tuple[float, float] = (0.0, 0.0)

    @property
    def rate(self) -> float:
        """(S + D + I) / reference, a fraction; of an empty reference, the number of errors."""
        return (self.substitutions + self.deletions + self.insertions) / max(self.reference, 1)

    @property
    def ins_del_rate(self) -> float:
        """(I + D) / reference: the paper's I+D, the errors of a CTC length gone wrong."""
        return (self.insertions + self.deletions) / max(self.reference, 1)

    def to_json(self) -> dict[str, Any]:
        """As score.json has it."""
        return {
            "rate": self.rate,
            "substitutions": self.substitutions,
            "deletions": self.deletions,
            "insertions": self.insertions,
            "reference": self.reference,
            "ci95": list(self.ci95),
        }


def score_pairs(
    references: Mapping[str, str],
    hypotheses: Mapping[str, str],
    unit: Unit = "word",
    spaces: bool = True,
    seed: int = 0,
) -> ErrorCounts:
    """Errors over all utterances, with a 95% bootstrap interval.

    Texts are compared as they are but for white space: every run counts as one space. `spaces`
    says whether spaces are characters. Raises `DataError` unless both have the same ids.
    """
    return summarise(align_pairs(references, hypotheses, unit, spaces), seed)


def summarise(found: UtteranceErrors, seed: int = 0) -> ErrorCounts:
    """Sums over the utterances, and the interval that resampling them gives."""
    return ErrorCounts(
        substitutions=int(found.substitutions.sum()),
        deletions=int(found.deletions.sum()),
        insertions=int(found.insertions.sum()),
        reference=int(found.reference.sum()),
        ci95=rate_interval(found.errors, found.reference, seed),
    )


def align_pairs(
    references: Mapping[str, str],
    hypotheses: Mapping[str, str],
    unit: Unit = "word",
    spaces: bool = True,
) -> UtteranceErrors:
    """Errors of every utterance from minimum edit distance alignments (jiwer's)."""
    _require_same_ids(references, hypotheses)
    ids = tuple(references)
    rows = _count_rows(
        [_collapse(references[i], unit, spaces) for i in ids],
        [_collapse(hypotheses[i], unit, spaces) for i in ids],
        unit,
    )
    table = np.array(rows, dtype=np.int64).reshape(len(ids), 4)
    return UtteranceErrors(ids, table[:, 0], table[:, 1], table[:, 2], table[:, 3])


def uses_spaces(texts: Iterable[str]) -> bool:
    """Whether a script separates words: False when most letters are Han, kana or Thai."""
    letters = [char for text in texts for char in text if char.isalpha()]
    joined = sum(
        unicodedata.name(char, "").startswith(("CJK", "HIRA", "KATA", "THAI")) for char in letters
    )
    return 2 * joined <= len(letters)


def _require_same_ids(references: Mapping[str, str], hypotheses: Mapping[str, str]) -> None:
    missing = [i for i in references if i not in hypotheses]
    extra = [i for i in hypotheses if i not in references]
    if missing or extra:
        raise DataError(
            "hypotheses",
            f"{len(missing)} references have none ({', '.join(missing[:3])}),"
            f" {len(extra)} have no reference ({', '.join(extra[:3])})",
            "Score the hypotheses of the same utterances",
        )


def _collapse(text: str, unit: Unit, spaces: bool) -> str:
    return (" " if spaces or unit == "word" else "").join(text.split())


def _count_rows(
    references: list[str], hypotheses: list[str], unit: Unit
) -> list[tuple[int, int, int, int]]:
    """(S, D, I, reference units) of every pair."""
    if not references:
        return []
    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    output = process(references, hypotheses)
    return [
        (*_count_chunks(chunks), len(units))
        for chunks, units in zip(output.alignments, output.references, strict=True)
    ]


def _count_chunks(chunks: Sequence[Any]) -> tuple[int, int, int]:
    totals = {"substitute": 0, "delete": 0, "insert": 0, "equal": 0}
    for chunk in chunks:
        totals[chunk.type] += max(
            chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx
        )
    return totals["substitute"], totals["delete"], totals["insert"]
