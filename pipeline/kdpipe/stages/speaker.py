"""A teacher in front of a split: what teacher-dump asks of any kind of teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kdpipe.features.prepared import PreparedData, PreparedSplit
from kdpipe.models import SUBSAMPLING
from kdpipe.store import StoreHeader, TeacherIdentity, TokenizerIdentity, UtteranceTargets
from kdpipe.store.schema import Json
from kdpipe.text.normalise import TextCase
from kdpipe.text.spoken import Punctuation
from kdpipe.text.tokenizer import Tokenizer

__all__ = ["Dense", "DumpSettings", "Speaker", "base_header"]

Dense = tuple[NDArray[np.float32], NDArray[np.float32]]
"""The posteriors (T', V) and (L + 1, V) that sparse targets were cut from."""


@dataclass(frozen=True)
class DumpSettings:
    """What is kept of the teacher's posteriors, and how its N-best is searched.

    `batch_frames` (feature frames, padding included) the teacher sees at once; it decides
    the last bits of every score, so resuming with another one is refused. `text_case` and
    `punctuation` are for teachers that give text: "auto" is the case of the tokenizer's letters.
    """

    top_k: int = 32
    min_prob: float = 1e-3
    codec: str = "log8"
    nbest: int = 10
    beam: int = 10
    ctc_weight: float = 0.3
    batch_frames: int = 16_000
    text_case: TextCase | Literal["auto"] = "auto"
    punctuation: Punctuation = "strip"


@dataclass(frozen=True)
class Speaker:
    """A teacher and a split.

    `header` is what its store says; `batches` are the positions of utterances it hears together,
    a cut that depends on the split alone. `speak` gives, for every batch, each utterance's targets
    with the dense posteriors behind them (None where the teacher has none). `remarks` are lines
    about what was left out so far.
    """

    name: str
    header: StoreHeader
    batches: Sequence[Sequence[int]]
    speak: Callable[
        [Iterable[Sequence[int]]], Iterator[Iterator[tuple[UtteranceTargets, Dense | None]]]
    ]
    remarks: Callable[[], list[str]] = list


def base_header(
    teacher: TeacherIdentity,
    prepared: PreparedData,
    tokenizer: Tokenizer,
    split: PreparedSplit,
    settings: DumpSettings,
    decode: Json,
    licence: str,
) -> StoreHeader:
    """Everything that a student must agree with before it learns from the store."""
    return StoreHeader(
        teacher=teacher,
        tokenizer=TokenizerIdentity(
            tokenizer.fingerprint,
            tokenizer.vocab_size,
            tokenizer.blank_id,
            tokenizer.sos_eos_id,
            tokenizer.sos_eos_id,
        ),
        feature_digest=prepared.feature_digest,
        cmvn_digest=prepared.cmvn.digest(),
        subsampling=SUBSAMPLING,
        frame_shift_seconds=prepared.filterbank.frame_shift_seconds * SUBSAMPLING,
        manifest_digest=split.manifest_digest,
        split=split.folder.name,
        decode=decode,
        nbest=settings.nbest,
        top_k=settings.top_k,
        min_prob=settings.min_prob,
        codec=settings.codec,
        licence=licence,
        expected_utterances=len(split),
    )
