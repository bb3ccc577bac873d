"""Records to flat arrays, a batch at a time: few numpy calls over all utterances together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.store.encode import decode_log8
from kdpipe.store.layout import COLUMN, COLUMNS, SCORES, SECTIONS, Widths, section_sizes
from kdpipe.store.record import MAX_TOKENS, Record
from kdpipe.store.schema import (
    STATUSES,
    SparsePosterior,
    StoredHypothesis,
    StoreHeader,
    UtteranceTargets,
)

__all__ = [
    "RaggedBatch",
    "RaggedNbest",
    "RaggedRows",
    "SectionCutter",
    "decode_batch",
    "decode_records",
    "utterance_targets",
]


@dataclass(frozen=True)
class RaggedRows:
    """Sparse posteriors of B utterances in flat arrays.

    Utterance b has rows `offsets[b]:offsets[b+1]` of `counts` and `tail`, and classes
    `class_offsets[b]:class_offsets[b+1]` of `ids` and `log_probs` (nats); otherwise as
    `SparsePosterior`.
    """

    offsets: NDArray[np.int64]
    class_offsets: NDArray[np.int64]
    counts: NDArray[np.unsignedinteger[Any]]
    ids: NDArray[np.int32]
    log_probs: NDArray[np.float32]
    tail: NDArray[np.float32]

    def posterior(self) -> SparsePosterior:
        """The rows of all utterances together."""
        return SparsePosterior(self.counts, self.ids, self.log_probs, self.tail)

    def utterance(self, position: int) -> SparsePosterior:
        """The rows of one utterance of the batch."""
        rows = slice(int(self.offsets[position]), int(self.offsets[position + 1]))
        classes = slice(int(self.class_offsets[position]), int(self.class_offsets[position + 1]))
        return SparsePosterior(
            self.counts[rows], self.ids[classes], self.log_probs[classes], self.tail[rows]
        )


@dataclass(frozen=True)
class RaggedNbest:
    """The hypotheses of B utterances in flat arrays.

    Utterance b has hypotheses `offsets[b]:offsets[b+1]`; hypothesis h has tokens
    `token_offsets[h]:token_offsets[h+1]` and `scores[h]`: attention, ctc, joint (nats),
    posterior (a probability).
    """

    offsets: NDArray[np.int64]
    token_offsets: NDArray[np.int64]
    tokens: NDArray[np.int32]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class RaggedBatch:
    """The targets of B utterances; `references` is flat, cut by `reference_offsets`."""

    ids: tuple[str, ...]
    frames: RaggedRows
    tokens: RaggedRows
    reference_offsets: NDArray[np.int64]
    references: NDArray[np.int32]
    nbest: RaggedNbest
    status: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)


def decode_batch(
    ids: Sequence[str],
    rows: NDArray[np.uint32],
    sizes: NDArray[np.int64],
    records: Sequence[NDArray[np.uint8]],
    header: StoreHeader,
) -> RaggedBatch:
    """Decode records (raw bytes) of the utterances `ids`, given their table rows and sizes.

    Raises `ValueError` when the bytes contradict the table or themselves.
    """
    widths = Widths.of(header)
    cut = SectionCutter(records, np.cumsum(sizes, axis=1))
    lengths = rows.astype(np.int64)
    frames, tokens = _decode_rows(cut, lengths, widths, header)
    references = cut.section("reference", widths.id).astype(np.int32)
    _require_ids(references, header)
    status = lengths[:, COLUMN["status"]]
    _require(int(status.max(initial=0)) < len(STATUSES), "a status that is unknown")
    return RaggedBatch(
        tuple(ids),
        frames,
        tokens,
        _offsets(np.maximum(lengths[:, COLUMN["tokens"]] - 1, 0)),
        references,
        _decode_nbest(cut, lengths, widths, header),
        tuple(STATUSES[code] for code in status.tolist()),
    )


def decode_records(records: Sequence[Record], header: StoreHeader) -> RaggedBatch:
    """What a store would give back for records not yet written."""
    rows = np.zeros((len(records), len(COLUMNS)), np.uint32)
    rows[:, COLUMN["frames"] : COLUMN["crc32c"]] = [record.lengths for record in records]
    contents = [np.frombuffer(record.content, np.uint8) for record in records]
    sizes = section_sizes(rows, Widths.of(header))
    return decode_batch([record.id for record in records], rows, sizes, contents, header)


class SectionCutter:
    """Cuts one section out of every record and joins the pieces."""

    def __init__(self, records: Sequence[NDArray[np.uint8]], ends: NDArray[np.int64]) -> None:
        self.records = records
        self.ends: list[list[int]] = ends.T.tolist()

    def pieces(self, name: str) -> list[NDArray[np.uint8]]:
        index = SECTIONS.index(name)
        starts = self.ends[index - 1] if index else [0] * len(self.records)
        return [
            record[start:end]
            for record, start, end in zip(self.records, starts, self.ends[index], strict=True)
        ]

    def section(self, name: str, kind: np.dtype[Any]) -> NDArray[Any]:
        return _join(self.pieces(name), kind)

    def both(self, name: str, kind: np.dtype[Any]) -> NDArray[Any]:
        """The frames' sections of all records, then the tokens'."""
        return _join(self.pieces(f"frame_{name}") + self.pieces(f"token_{name}"), kind)


def _join(pieces: Sequence[NDArray[np.uint8]], kind: np.dtype[Any]) -> NDArray[Any]:
    if not pieces:
        return np.zeros(0, kind)
    return np.concatenate(pieces).view(kind)


def _decode_rows(
    cut: SectionCutter, lengths: NDArray[np.int64], widths: Widths, header: StoreHeader
) -> tuple[RaggedRows, RaggedRows]:
    """Frames and tokens are decoded together and then cut apart."""
    words = cut.both("rows", widths.row)
    flagged = np.flatnonzero(words & words.dtype.type(widths.flag))
    counts = words & words.dtype.type(widths.flag - 1)
    _require(not len(counts) or bool(counts.min()), "a row without classes")
    most = int(counts.max(initial=0))
    _require(most <= header.top_k, f"more classes than the {header.top_k} of the header")
    offsets = [_offsets(lengths[:, COLUMN[name]]) for name in ("frames", "tokens")]
    class_offsets = [
        _offsets(lengths[:, COLUMN[name]]) for name in ("frame_classes", "token_classes")
    ]
    _require_totals(counts, offsets, class_offsets)
    ids = _decode_ids(cut.both("ids", widths.id), counts, flagged, header)
    log_tail = cut.both("tails", widths.tail).astype(np.float32)
    _require(bool((log_tail < 0).all()), "a tail that is no probability below 1")
    log_probs = _decode_log_probs(cut.both("codes", widths.code), counts, log_tail, header)
    tail = np.exp(log_tail)
    narrow = counts.astype(np.uint8 if header.top_k < 2**8 else np.uint16)
    row, place = int(offsets[0][-1]), int(class_offsets[0][-1])
    return (
        RaggedRows(
            offsets[0], class_offsets[0], narrow[:row], ids[:place], log_probs[:place], tail[:row]
        ),
        RaggedRows(
            offsets[1], class_offsets[1], narrow[row:], ids[place:], log_probs[place:], tail[row:]
        ),
    )


def _require_totals(
    counts: NDArray[Any], offsets: list[NDArray[np.int64]], class_offsets: list[NDArray[np.int64]]
) -> None:
    """Every utterance's rows must add up to the number of classes its table row claims."""
    row_ends = np.concatenate((offsets[0], offsets[0][-1] + offsets[1][1:]))
    expected = np.concatenate((class_offsets[0], class_offsets[0][-1] + class_offsets[1][1:]))
    sums = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
    _require(
        int(row_ends[-1]) == len(counts) and bool((sums[row_ends] == expected).all()),
        "rows whose classes do not add up",
    )


def _decode_ids(
    written: NDArray[Any], counts: NDArray[Any], flagged: NDArray[np.int64], header: StoreHeader
) -> NDArray[np.int32]:
    """Put blank back where its id was left out: the first class of the flagged rows."""
    ends = np.cumsum(counts, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    _require(total == len(written) + len(flagged), "class ids that do not add up")
    blanks = ends[flagged] - counts[flagged]
    explicit = np.ones(total, np.bool_)
    explicit[blanks] = False
    ids = np.empty(total, np.int32)
    ids[blanks] = header.tokenizer.blank
    ids[explicit] = written
    _require_ids(written, header)
    return ids


def _decode_log_probs(
    codes: NDArray[Any], counts: NDArray[Any], log_tail: NDArray[np.float32], header: StoreHeader
) -> NDArray[np.float32]:
    if header.codec == "log8":
        return decode_log8(counts, codes, log_tail, header.step)
    log_probs = codes.astype(np.float32)
    fits = np.isfinite(log_probs) & (log_probs <= 1e-3)
    _require(bool(fits.all()), "a log-probability that is not finite or above 0")
    return log_probs


def _decode_nbest(
    cut: SectionCutter, lengths: NDArray[np.int64], widths: Widths, header: StoreHeader
) -> RaggedNbest:
    """Copy every hypothesis together from its own tokens and the ends of its utterance's first."""
    most = int(lengths[:, COLUMN["hypotheses"]].max(initial=0))
    _require(most <= header.nbest, f"more hypotheses than the {header.nbest} of the header")
    offsets = _offsets(lengths[:, COLUMN["hypotheses"]])
    spans = cut.section("spans", np.dtype("<u2")).reshape(-1, 3).astype(np.int64)
    middles = cut.section("middles", widths.id)
    scores = cut.section("scores", np.dtype("<f4")).reshape(-1, len(SCORES))
    _require_ids(middles, header)
    _require(not bool(np.isnan(scores).any()), "a score that is NaN")
    prefix, suffix, own = spans.T
    first = np.repeat(offsets[:-1], np.diff(offsets))
    own_offsets = _offsets(own)
    _require(int(own_offsets[-1]) == len(middles), "hypothesis tokens that do not add up")
    of_first = first != np.arange(len(first))
    borrowed = prefix + suffix
    _require(bool((borrowed <= own[first] * of_first).all()), "a hypothesis beyond the first")
    token_offsets = _offsets(borrowed + own)
    most = int(np.diff(token_offsets[offsets]).max(initial=0))
    _require(most <= MAX_TOKENS, f"hypotheses of {most} tokens")
    starts = np.stack((own_offsets[first], own_offsets[:-1], own_offsets[first + 1] - suffix), 1)
    pieces = np.stack((prefix, own, suffix), 1).ravel()
    ends = np.cumsum(pieces)
    source = np.repeat(starts.ravel() - (ends - pieces), pieces)
    source += np.arange(len(source))
    return RaggedNbest(offsets, token_offsets, middles[source].astype(np.int32), scores)


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _require_ids(ids: NDArray[Any], header: StoreHeader) -> None:
    _require(
        not len(ids) or int(ids.max()) < header.tokenizer.vocab_size,
        "token ids beyond the vocabulary",
    )


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)


def utterance_targets(batch: RaggedBatch, position: int) -> UtteranceTargets:
    """One utterance of a batch as a record of its own."""
    nbest = batch.nbest
    hypotheses = []
    for h in range(int(nbest.offsets[position]), int(nbest.offsets[position + 1])):
        tokens = nbest.tokens[int(nbest.token_offsets[h]) : int(nbest.token_offsets[h + 1])]
        hypotheses.append(StoredHypothesis(tuple(tokens.tolist()), *nbest.scores[h].tolist()))
    start, end = batch.reference_offsets[position : position + 2].tolist()
    return UtteranceTargets(
        batch.ids[position],
        batch.frames.utterance(position),
        batch.tokens.utterance(position),
        tuple(batch.references[start:end].tolist()),
        tuple(hypotheses),
        batch.status[position],
    )
