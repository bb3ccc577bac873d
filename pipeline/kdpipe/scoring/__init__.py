"""Error rates on id-aligned pairs, confidence intervals, score.json."""

from __future__ import annotations

from kdpipe.scoring.bootstrap import Comparison, compare_systems, rate_interval
from kdpipe.scoring.errors import (
    ErrorCounts,
    UtteranceErrors,
    align_pairs,
    score_pairs,
    uses_spaces,
)
from kdpipe.scoring.report import ScoreReport, format_table, read_report, score_report

__all__ = [
    "Comparison",
    "ErrorCounts",
    "ScoreReport",
    "UtteranceErrors",
    "align_pairs",
    "compare_systems",
    "format_table",
    "rate_interval",
    "read_report",
    "score_pairs",
    "score_report",
    "uses_spaces",
]
