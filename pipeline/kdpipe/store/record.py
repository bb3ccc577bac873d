"""One utterance's targets as bytes: what the writer appends and FORMAT.md calls a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from kdpipe.errors import DataError
from kdpipe.store.encode import SMALLEST_TAIL, encode_log8
from kdpipe.store.layout import Widths
from kdpipe.store.schema import (
    STATUSES,
    SparsePosterior,
    StoredHypothesis,
    StoreHeader,
    UtteranceTargets,
)

__all__ = ["MAX_TOKENS", "Record", "pack_record", "record_checksum"]

MAX_LENGTH = 2**16 - 1
MAX_TOKENS = 1 << 22
"""Of all hypotheses of an utterance: in a forged record 22 bytes can stand for 65535 tokens."""
UNSORTED, UNNORMALISED = 1e-3, 1e-2
"""How far rows may be from descending (nats), and from summing to 1."""


def record_checksum(head: bytes, content: bytes | NDArray[np.uint8]) -> int:
    """CRC-32C over `head` (the lengths as uint32, then the id) and a record's bytes."""
    checksum: int = google_crc32c.extend(google_crc32c.value(head), content)
    return checksum


@dataclass(frozen=True)
class Record:
    """Packed targets: `lengths` are those of `layout.LENGTH_COLUMNS`."""

    id: str
    lengths: tuple[int, ...]
    content: bytes

    @property
    def crc32c(self) -> int:
        """CRC-32C over lengths, id and content, as `table` keeps it."""
        head = np.asarray(self.lengths, "<u4").tobytes() + self.id.encode()
        return record_checksum(head, self.content)


def pack_record(targets: UtteranceTargets, header: StoreHeader) -> Record:
    """Pack one utterance; raises `DataError` naming it when its parts do not fit each other."""
    widths = Widths.of(header)
    _check_targets(targets, header)
    frames, frame_ids = _pack_rows(targets.frames, widths, header, blank=header.tokenizer.blank)
    tokens, _ = _pack_rows(targets.tokens, widths, header, blank=None)
    nbest, middle_tokens = _pack_nbest(targets.nbest, widths)
    reference = np.asarray(targets.reference, widths.id).tobytes()
    lengths = (
        len(targets.frames),
        len(targets.frames.ids),
        frame_ids,
        len(targets.tokens),
        len(targets.tokens.ids),
        len(targets.nbest),
        middle_tokens,
        STATUSES.index(targets.status),
    )
    return Record(targets.id, lengths, b"".join((*frames, *tokens, reference, *nbest)))


def _pack_rows(
    posterior: SparsePosterior, widths: Widths, header: StoreHeader, blank: int | None
) -> tuple[list[bytes], int]:
    """Sections rows, ids, codes, tails; also how many ids are written out."""
    counts = posterior.counts.astype(np.int64)
    starts = np.cumsum(counts) - counts
    flagged = np.zeros(len(counts), np.bool_)
    if blank is not None:
        flagged = posterior.ids[starts] == blank
    written = np.ones(len(posterior.ids), np.bool_)
    written[starts[flagged]] = False
    rows = counts + widths.flag * flagged
    codes = (
        encode_log8(posterior, header.step)
        if widths.implied
        else posterior.log_probs.astype(widths.code)
    )
    with np.errstate(divide="ignore"):
        log_tail = np.minimum(np.log(posterior.tail.astype(np.float32)), -SMALLEST_TAIL)
    sections = [
        rows.astype(widths.row).tobytes(),
        posterior.ids[written].astype(widths.id).tobytes(),
        codes.tobytes(),
        log_tail.astype(widths.tail).tobytes(),
    ]
    return sections, int(written.sum())


def _pack_nbest(nbest: Sequence[StoredHypothesis], widths: Widths) -> tuple[list[bytes], int]:
    """Sections spans, middles, scores; also how many tokens the middles hold.

    The first hypothesis is written out; each other is a beginning and an end of the first with
    tokens of its own between them.
    """
    spans: list[tuple[int, int, int]] = []
    middles: list[int] = []
    for position, hypothesis in enumerate(nbest):
        first = nbest[0].tokens if position else ()
        prefix, suffix = _shared_ends(hypothesis.tokens, first)
        middle = hypothesis.tokens[prefix : len(hypothesis.tokens) - suffix]
        spans.append((prefix, suffix, len(middle)))
        middles.extend(middle)
    scores = [(h.attention, h.ctc, h.joint, h.posterior) for h in nbest]
    sections = [
        np.asarray(spans, "<u2").tobytes(),
        np.asarray(middles, widths.id).tobytes(),
        np.asarray(scores, "<f4").tobytes(),
    ]
    return sections, len(middles)


def _shared_ends(tokens: Sequence[int], first: Sequence[int]) -> tuple[int, int]:
    """How many tokens two sequences share at the beginning, and of the others at the end."""
    shortest = min(len(tokens), len(first))
    prefix = 0
    while prefix < shortest and tokens[prefix] == first[prefix]:
        prefix += 1
    suffix = 0
    while suffix < shortest - prefix and tokens[-1 - suffix] == first[-1 - suffix]:
        suffix += 1
    return prefix, suffix


def _check_targets(targets: UtteranceTargets, header: StoreHeader) -> None:
    problem = (
        _id_problem(targets.id)
        or _rows_problem(targets.frames, header, "frames")
        or _rows_problem(targets.tokens, header, "tokens")
        or _reference_problem(targets, header)
        or _nbest_problem(targets, header)
        or _streams_problem(targets, header)
    )
    if problem:
        raise DataError(f"targets of {targets.id!r:.80}", problem, "Mend what computes the targets")


def _id_problem(utterance: str) -> str | None:
    try:
        fits = 0 < len(utterance.encode()) <= MAX_LENGTH
    except UnicodeEncodeError:
        return "an id that is no Unicode text (half a surrogate pair)"
    return None if fits else "an id needs 1 to 65535 bytes"


def _rows_problem(posterior: SparsePosterior, header: StoreHeader, name: str) -> str | None:
    counts, ids, values = posterior.counts, posterior.ids, posterior.log_probs
    if len(counts) != len(posterior.tail) or not len(ids) == len(values) == int(counts.sum()):
        return f"{name}: counts, ids, log_probs and tail differ in length"
    if not len(counts):
        return None
    if counts.min() < 1 or counts.max() > header.top_k:
        return f"{name}: rows of {counts.min()} to {counts.max()} classes, not 1 to {header.top_k}"
    if ids.min() < 0 or ids.max() >= header.tokenizer.vocab_size:
        return f"{name}: class ids beyond the vocabulary of {header.tokenizer.vocab_size}"
    if not bool(np.isfinite(values).all() and values.max() <= 1e-3):
        return f"{name}: log-probabilities that are not finite or above 0"
    if not bool((posterior.tail >= 0).all() and (posterior.tail <= 1).all()):
        return f"{name}: tails that are no probability"
    return _distribution_problem(posterior, name)


def _distribution_problem(posterior: SparsePosterior, name: str) -> str | None:
    """Whether rows are distributions by descending probability, as log8 needs them."""
    counts, values = posterior.counts.astype(np.int64), posterior.log_probs.astype(np.float32)
    starts = np.cumsum(counts) - counts
    rises = np.diff(values) > UNSORTED
    rises[starts[1:] - 1] = False  # From one row to the next.
    if bool(rises.any()):
        return f"{name}: rows whose classes are not by descending probability"
    mass = np.add.reduceat(np.exp(values), starts) + posterior.tail
    worst = int(np.abs(mass - 1).argmax())
    if abs(mass[worst] - 1) > UNNORMALISED:
        return f"{name}: a row whose classes and tail sum to {mass[worst]:.4g}, not 1"
    places = np.repeat(np.arange(len(counts)) << 32, counts) + posterior.ids
    places.sort()
    return f"{name}: a row that has a class twice" if (np.diff(places) == 0).any() else None


def _reference_problem(targets: UtteranceTargets, header: StoreHeader) -> str | None:
    rows, length = len(targets.tokens), len(targets.reference)
    if rows != length + 1 and not rows == length == 0:
        return f"{rows} token rows for {length} reference tokens and the end of sentence"
    if not _in_vocabulary(targets.reference, header):
        return "reference tokens beyond the vocabulary"
    return None if targets.status in STATUSES else f"status {targets.status!r} is unknown"


def _nbest_problem(targets: UtteranceTargets, header: StoreHeader) -> str | None:
    if len(targets.nbest) > header.nbest:
        return f"{len(targets.nbest)} hypotheses where the header says {header.nbest}"
    for hypothesis in targets.nbest:
        if len(hypothesis.tokens) > MAX_LENGTH or not _in_vocabulary(hypothesis.tokens, header):
            return "a hypothesis has tokens beyond the vocabulary, or too many"
    if sum(len(hypothesis.tokens) for hypothesis in targets.nbest) > MAX_TOKENS:
        return f"hypotheses of more than {MAX_TOKENS} tokens together"
    scores = np.asarray(
        [(h.attention, h.ctc, h.joint, h.posterior) for h in targets.nbest], np.float32
    )
    return "a hypothesis has a score that is NaN" if bool(np.isnan(scores).any()) else None


def _streams_problem(targets: UtteranceTargets, header: StoreHeader) -> str | None:
    held = {
        "frames": len(targets.frames),
        "tokens": len(targets.tokens),
        "nbest": len(targets.nbest),
    }
    extra = [name for name, count in held.items() if count and name not in header.streams]
    return f"{', '.join(extra)} where the header says there are none" if extra else None


def _in_vocabulary(tokens: Sequence[int], header: StoreHeader) -> bool:
    array: NDArray[np.int64] = np.asarray(tokens, np.int64)
    return not len(array) or (
        int(array.min()) >= 0 and int(array.max()) < header.tokenizer.vocab_size
    )
