"""What a page is made of: plain records, gathered from runs by whoever can read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.scoring.errors import ErrorCounts, Unit, UtteranceErrors
from kdpipe.scoring.report import ScoreReport

__all__ = [
    "DataSummary",
    "DecodeRun",
    "FrameAgreement",
    "Material",
    "ModelRun",
    "PosteriorPicture",
    "PosteriorRow",
    "Section",
    "StoreRun",
]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ModelRun:
    """A model directory, or a model known only from the outputs it decoded.

    kind: "ar", "mask-ctc", or "" while its training has not finished. epochs: the `epoch` records
    of train.jsonl. stage_starts: epochs (from 1) at which a further stage of the schedule begins.
    teachers: names of those whose stored targets it learned from. known: whether the model itself
    is at hand; of one that is not, nobody can say what it learned from.
    """

    name: str
    kind: str = ""
    parameters: int | None = None
    teachers: tuple[str, ...] = ()
    epochs: tuple[Mapping[str, Any], ...] = ()
    stage_starts: tuple[int, ...] = ()
    known: bool = True

    @property
    def role(self) -> str:
        """What the model is to the others."""
        if self.kind == "ar":
            return "autoregressive teacher"
        if self.kind == "mask-ctc" and not self.known:
            return "student"
        if self.kind == "mask-ctc":
            return "distilled student" if self.teachers else "plain student"
        return "model"


@dataclass(frozen=True)
class DecodeRun:
    """A decode output. model: the name of its `ModelRun`. search: the settings it ran with.

    unit: what the language's errors are counted in first: characters where its script puts no
    spaces between words. errors (in `unit`) and texts (id to reference and hypothesis) are there
    when the data that was decoded is at hand.
    """

    name: str
    model: str
    report: ScoreReport
    search: Mapping[str, Any]
    unit: Unit = "word"
    errors: UtteranceErrors | None = None
    texts: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def counts(self) -> ErrorCounts | None:
        """The report's errors in `unit`."""
        return self.report.wer if self.unit == "word" else self.report.cer

    @property
    def units(self) -> str:
        """What `unit` is called, more than one of them."""
        return "words" if self.unit == "word" else "characters"

    @property
    def rate_name(self) -> str:
        """What the rate of errors in `unit` is called."""
        return "WER" if self.unit == "word" else "CER"


@dataclass(frozen=True)
class StoreRun:
    """A teacher store. info: what `kdpipe store info --json` prints. section_bytes: bytes by part
    of a record, over `sampled` utterances."""

    name: str
    info: Mapping[str, Any]
    section_bytes: Mapping[str, int]
    sampled: int


@dataclass(frozen=True)
class DataSummary:
    """A prepared data folder. splits: name to utterances and seconds."""

    name: str
    tokens: str
    splits: Mapping[str, tuple[int, float]]


@dataclass(frozen=True)
class FrameAgreement:
    """A student's CTC posteriors beside the teacher's stored ones, frame by frame.

    frames: all that were compared; spoken: those where the teacher's best class is not blank.
    same, same_spoken: shares of them where both have one best class. kl: mean KL(teacher ||
    student), nats a frame, the classes beyond the stored ones as one. teacher_counts,
    student_counts: spoken frames by the highest posterior, equal bins from 0 to 1. reliability:
    of all frames by the student's highest posterior, (mean of it, share where the best class is
    the teacher's, frames).
    """

    store: str
    student: str
    utterances: int
    frames: int
    spoken: int
    same: float
    same_spoken: float
    kl: float
    teacher_counts: tuple[int, ...]
    student_counts: tuple[int, ...]
    reliability: tuple[tuple[float, float, int], ...]


@dataclass(frozen=True, eq=False)
class PosteriorRow:
    """One model's posteriors (frames, classes) of one utterance, and what it recognised."""

    model: str
    origin: str
    text: str
    posteriors: Array


@dataclass(frozen=True)
class PosteriorPicture:
    """CTC posteriors of one utterance under several models; `why` it was chosen."""

    utterance: str
    why: str
    reference: str
    frame_seconds: float
    classes: tuple[str, ...]
    rows: tuple[PosteriorRow, ...]


@dataclass(frozen=True)
class Material:
    """Everything a page can show. notes: what could not be read or run, one sentence each."""

    title: str
    models: tuple[ModelRun, ...] = ()
    decodes: tuple[DecodeRun, ...] = ()
    stores: tuple[StoreRun, ...] = ()
    data: tuple[DataSummary, ...] = ()
    agreements: tuple[FrameAgreement, ...] = ()
    pictures: tuple[PosteriorPicture, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """One part of the page: its body, or what is missing and how to get it."""

    name: str
    title: str
    lead: str = ""
    body: str | None = None
    missing: str = ""
