"""score.json: what one decoding run cost and got wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdpipe.errors import DataError
from kdpipe.files import read_json
from kdpipe.scoring.errors import ErrorCounts, score_pairs, uses_spaces

__all__ = ["ScoreReport", "format_table", "read_report", "score_report"]

UNITS = (("words", "wer"), ("characters", "cer"))


@dataclass(frozen=True)
class ScoreReport:
    """One row of results.

    skipped: utterances of the split that could not be used. audio_seconds, decode_seconds:
    of all decoded utterances. wer and cer are None where there were no references.
    """

    split: str
    mode: str
    beam: int
    utterances: int
    skipped: int
    audio_seconds: float
    decode_seconds: float
    threads: int
    device: str
    wer: ErrorCounts | None
    cer: ErrorCounts | None

    @property
    def rtf(self) -> float:
        """Seconds of decoding per second of audio."""
        return self.decode_seconds / self.audio_seconds if self.audio_seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """score.json."""
        return {
            "split": self.split,
            "mode": self.mode,
            "beam": self.beam,
            "utterances": self.utterances,
            "skipped": self.skipped,
            "audio_seconds": self.audio_seconds,
            "decode_seconds": self.decode_seconds,
            "rtf": self.rtf,
            "threads": self.threads,
            "device": self.device,
            "wer": None if self.wer is None else self.wer.to_json(),
            "cer": None if self.cer is None else self.cer.to_json(),
        }


def score_report(
    references: Mapping[str, str],
    hypotheses: Mapping[str, str],
    *,
    split: str,
    mode: str,
    beam: int,
    utterances: int,
    skipped: int,
    audio_seconds: float,
    decode_seconds: float,
    threads: int,
    device: str,
) -> ScoreReport:
    """Score `hypotheses` and put the figures beside what the run was.

    CER counts spaces as characters where the script writes them (not in Mandarin). Errors as
    `score_pairs`.
    """
    spaces = uses_spaces(references.values())
    return ScoreReport(
        split=split,
        mode=mode,
        beam=beam,
        utterances=utterances,
        skipped=skipped,
        audio_seconds=audio_seconds,
        decode_seconds=decode_seconds,
        threads=threads,
        device=device,
        wer=score_pairs(references, hypotheses, "word") if references else None,
        cer=score_pairs(references, hypotheses, "char", spaces) if references else None,
    )


def read_report(path: Path) -> ScoreReport:
    """Read a score.json; `DataError` for anything else."""
    content = read_json(path)
    try:
        if not isinstance(content, dict):
            raise TypeError("not an object")
        fields = {key: value for key, value in content.items() if key != "rtf"}
        units = {name: _read_counts(fields[name]) for _, name in UNITS}
        return ScoreReport(**{**fields, **units})
    except (KeyError, TypeError) as error:
        raise DataError(str(path), f"not a score.json ({error})", "Decode again") from error


def _read_counts(content: Mapping[str, Any] | None) -> ErrorCounts | None:
    if content is None:
        return None
    fields = {key: value for key, value in content.items() if key not in ("rate", "ci95")}
    return ErrorCounts(**fields, ci95=(content["ci95"][0], content["ci95"][1]))


def format_table(reports: Sequence[ScoreReport]) -> str:
    """A table for people: rates in percent, one line for words and one for characters."""
    header = (
        f"{'split':<12}{'mode':<10}{'beam':>5}{'unit':>12}{'error %':>9}{'95% interval':>17}"
        f"{'S':>8}{'D':>8}{'I':>8}{'I+D %':>8}{'of':>9}{'RTF':>9}"
    )
    lines = [line for report in reports for line in _table_lines(report)]
    return "\n".join([header, *lines])


def _table_lines(report: ScoreReport) -> list[str]:
    run = f"{report.split:<12}{report.mode:<10}{report.beam:>5}"
    scored = [(unit, getattr(report, name)) for unit, name in UNITS]
    lines = [
        f"{run}{unit:>12}{_table_counts(counts)}{report.rtf:>9.4f}"
        for unit, counts in scored
        if counts is not None
    ]
    return lines or [f"{run}{'no reference':>12}{'':>67}{report.rtf:>9.4f}"]


def _table_counts(counts: ErrorCounts) -> str:
    interval = f"{100 * counts.ci95[0]:.2f} - {100 * counts.ci95[1]:.2f}"
    return (
        f"{100 * counts.rate:>9.2f}{interval:>17}{counts.substitutions:>8}{counts.deletions:>8}"
        f"{counts.insertions:>8}{100 * counts.ins_del_rate:>8.2f}{counts.reference:>9}"
    )
