"""What a teacher store holds: its header, and the targets of one utterance.

Probabilities are natural logarithms (nats) unless a name says otherwise; the tail of a row is a
plain probability. Class ids are those of the teacher's tokenizer.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kdpipe.errors import DataError, StoreFormatError
from kdpipe.files import json_digest

__all__ = [
    "CODECS",
    "FORMAT_VERSION",
    "SCORE_DEFINITIONS",
    "STATUSES",
    "STREAMS",
    "Fidelity",
    "SparsePosterior",
    "StoreHeader",
    "StoredHypothesis",
    "TeacherIdentity",
    "TokenizerIdentity",
    "UtteranceTargets",
    "header_from_json",
    "header_to_json",
    "plain_header",
]

FORMAT_VERSION = 1
"""The version of FORMAT.md that this package writes; it reads this one and older ones."""

CODECS = ("log8", "fp16", "fp32")
"""How log-probabilities are kept: one byte of `step` nats, half or single precision."""

STREAMS = ("frames", "tokens", "nbest")
"""What a record may hold: CTC posteriors, decoder posteriors with the reference, the n-best."""

STATUSES = (
    "ok",
    "short-nbest",
    "no-nbest",
    "no-reference",
    "failed",
    "pseudo",
    "too-long",
    "empty",
    "unknown-token",
    "unalignable",
    "unfinished",
)
"""How the teacher fared on an utterance; stored as the position in this tuple.

`pseudo`: no text was given, the first hypothesis takes its place. `too-long`: not heard, beyond the
teacher's window. From `empty` on no hypothesis (for unlabelled speech: no label) could be used, and
this is why the first could not.
"""

SCORE_DEFINITIONS = {
    "attention": "log P_attention(hypothesis, end of sentence | X), nats",
    "ctc": "log P_CTC(hypothesis | X), nats",
    "joint": "the search's own score, nats: (1 - w) attention + w ctc (+ length bonus)",
    "posterior": "exp(joint) over the sum of exp(joint) of the stored n-best (Eq. 9)",
}

FREE_FIELDS = (
    "created",
    "kdpipe_version",
    "licence",
    "expected_utterances",
    "id_bytes",
    "fidelity",
    "lineage",
)
"""Fields that the header's part of the content digest does not cover."""

MAX_DEPTH = 64
"""Of nesting in a header; averaging averages adds a level to `decode` each time."""

Json = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class SparsePosterior:
    """The likely classes of n distributions, one ragged row each.

    `counts` (n,) classes of each row (uint8, uint16 where a row can hold more than 255);
    `ids` and `log_probs` (sum of counts,) the classes of each row by descending probability and
    their natural-log probabilities; `tail` (n,) the mass of all classes that are not listed.
    """

    counts: NDArray[np.unsignedinteger[Any]]
    ids: NDArray[np.int32]
    log_probs: NDArray[np.float32]
    tail: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.counts)


@dataclass(frozen=True)
class StoredHypothesis:
    """One of the teacher's n-best; scores as `StoreHeader.score_definitions` says."""

    tokens: tuple[int, ...]
    attention: float
    ctc: float
    joint: float
    posterior: float


@dataclass(frozen=True)
class UtteranceTargets:
    """Everything the teacher said about one utterance.

    `frames` has one row per encoder frame (CTC, blank included); `tokens` one row per reference
    token and one for the end of sentence (decoder, teacher-forced on `reference`), or none when
    there is no reference.
    """

    id: str
    frames: SparsePosterior
    tokens: SparsePosterior
    reference: tuple[int, ...]
    nbest: tuple[StoredHypothesis, ...]
    status: str = "ok"


@dataclass(frozen=True)
class TeacherIdentity:
    """The model that spoke: a name for people and the SHA-256 of its weights."""

    name: str
    sha256: str


@dataclass(frozen=True)
class TokenizerIdentity:
    """What class ids mean. `vocab_size` counts blank, unk and sos/eos, but no mask."""

    fingerprint: str
    vocab_size: int
    blank: int
    sos: int
    eos: int


@dataclass(frozen=True)
class Fidelity:
    """KL(teacher || store) in nats, a mean per row, over a sample of `utterances`.

    The store's tail is spread evenly over the classes it does not list.
    """

    frame_kl: float
    token_kl: float
    utterances: int


@dataclass(frozen=True)
class StoreHeader:
    """Whose targets these are, of what, and how they were made and kept.

    `frame_shift_seconds` is between encoder frames (after subsampling). `decode` holds every
    setting of the search. Classes below `min_prob` and beyond the `top_k` likeliest are in the
    tail. `step` (nats) is the quantisation step of codec `log8`: no stored log-probability is
    off by more than `step`. `expected_utterances` is how many the finished store will hold (0: not
    known). `streams` says which of `STREAMS` the records hold. `id_bytes` is the size of a class id
    (0: the writer takes the smallest; in a stored header, 2, or 4 beyond 65536 classes). `lineage`
    holds the digests of the stores this one was made from. Fields with a default may be absent
    from a stored header.
    """

    teacher: TeacherIdentity
    tokenizer: TokenizerIdentity
    feature_digest: str
    cmvn_digest: str
    subsampling: int
    frame_shift_seconds: float
    manifest_digest: str
    split: str
    decode: Json
    nbest: int
    top_k: int = 32
    min_prob: float = 1e-3
    codec: str = "log8"
    step: float = 1 / 32
    score_definitions: dict[str, str] = field(default_factory=lambda: dict(SCORE_DEFINITIONS))
    format_version: int = FORMAT_VERSION
    created: str = ""
    kdpipe_version: str = ""
    licence: str = ""
    expected_utterances: int = 0
    streams: tuple[str, ...] = STREAMS
    id_bytes: int = 0
    fidelity: Fidelity | None = None
    lineage: tuple[str, ...] = ()

    def identity(self) -> Json:
        """The fields that a writer must repeat to resume, and that the content digest covers."""
        content = header_to_json(self)
        for name in FREE_FIELDS:
            del content[name]
        return content

    def settings(self) -> Json:
        """`identity()` with every field, to compare with another store's."""
        return {**self.identity(), "streams": list(self.streams)}

    def identity_digest(self) -> str:
        """Hex SHA-256 of `identity()`."""
        return json_digest(self.identity())


def header_to_json(header: StoreHeader) -> Json:
    """The header as plain JSON types; `streams` only where one is absent, as format 1 began."""
    content = dataclasses.asdict(header)
    content["lineage"] = list(header.lineage)
    content["streams"] = list(header.streams)
    if header.streams == STREAMS:
        del content["streams"]
    return content


def plain_header(header: StoreHeader) -> StoreHeader:
    """The header as a store gives it back: what JSON has no type for (tuples) becomes what it has.

    Raises `DataError` for what no store can hold.
    """
    try:
        content = json.loads(json.dumps(header_to_json(header)))
        return header_from_json(content, "the header")
    except (TypeError, ValueError) as error:
        problem = error.problem if isinstance(error, StoreFormatError) else str(error)
        remedy = "Give plain numbers, strings, lists and dicts within their ranges"
        raise DataError("the header of a store", problem, remedy) from error


def header_from_json(content: object, where: str) -> StoreHeader:
    """Read a header strictly; `where` names the store in errors.

    Raises `StoreFormatError` for a newer format, or a field missing, unknown, of the wrong type
    or out of range.
    """
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise StoreFormatError(
            where, f"format {version} is newer than {FORMAT_VERSION}", "Upgrade kdpipe to read it"
        )
    try:
        _require_plain(content)
        header = _from_json(StoreHeader, content, "header")
        _check_ranges(header)
    except (TypeError, ValueError, OverflowError) as error:
        raise StoreFormatError(
            where, f"no valid store header: {error}", "Copy or dump the store again"
        ) from error
    return header


def _require_plain(content: object, room: int = MAX_DEPTH) -> None:
    """Refuse what cannot be written again: nesting without end, half surrogate pairs."""
    if isinstance(content, str):
        content.encode()
    if not isinstance(content, dict | list):
        return
    if not room:
        raise ValueError("nested too deep")
    for value in (*content, *content.values()) if isinstance(content, dict) else content:
        _require_plain(value, room - 1)


def _check_ranges(header: StoreHeader) -> None:
    vocab = header.tokenizer.vocab_size
    rules = {
        "codec": header.codec in CODECS,
        "vocab_size": 2 <= vocab < 2**31,
        "blank": 0 <= header.tokenizer.blank < vocab,
        "sos": 0 <= header.tokenizer.sos < vocab,
        "eos": 0 <= header.tokenizer.eos < vocab,
        "top_k": 1 <= header.top_k < 2**15,
        "min_prob": 0.0 <= header.min_prob < 1.0,
        "step": 0.0 < header.step <= 1.0,
        "subsampling": header.subsampling >= 1,
        "frame_shift_seconds": 0.0 < header.frame_shift_seconds < 10.0,
        "nbest": 0 <= header.nbest < 2**16,
        "streams": bool(header.streams)
        and header.streams == tuple(name for name in STREAMS if name in header.streams),
        "id_bytes": header.id_bytes in (0, 1, 2, 4)
        and (not header.id_bytes or vocab <= 256**header.id_bytes),
        "expected_utterances": header.expected_utterances >= 0,
        "format_version": header.format_version >= 1,
    }
    broken = [name for name, holds in rules.items() if not holds]
    if broken:
        raise ValueError(f"{', '.join(broken)} out of range")


def _from_json(kind: type[T], content: object, where: str) -> T:
    """Build a dataclass from a JSON object of its fields; those with a default may be absent."""
    if not isinstance(content, dict):
        raise TypeError(f"{where} is no JSON object")
    hints = typing.get_type_hints(kind)
    optional = {f.name for f in dataclasses.fields(kind) if _has_default(f)}  # type: ignore[arg-type]
    wrong = sorted(str(name) for name in (set(content) ^ set(hints)) - (optional - set(content)))
    if wrong:
        raise ValueError(f"{where} lacks or has too many of: {', '.join(wrong[:8])}")
    return kind(**{name: _value(hints[name], value, name) for name, value in content.items()})


def _has_default(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _value(hint: Any, value: object, name: str) -> object:
    if isinstance(hint, types.UnionType):
        return None if value is None else _value(typing.get_args(hint)[0], value, name)
    if dataclasses.is_dataclass(hint):
        return _from_json(typing.cast(type[object], hint), value, name)
    origin = typing.get_origin(hint)
    if origin is tuple:
        return tuple(_strings(value, name))
    if origin is dict:
        return _mapping(hint, value, name)
    return _scalar(hint, value, name)


def _scalar(hint: Any, value: object, name: str) -> object:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or isinstance(value, bool):
        raise TypeError(f"{name} = {value!r:.60} is no {hint.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} = {value} is not finite")
    return value


def _strings(value: object, name: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"{name} is no list of strings")
    return value


def _mapping(hint: Any, value: object, name: str) -> Mapping[str, object]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{name} is no JSON object")
    if typing.get_args(hint)[1] is str and not all(isinstance(v, str) for v in value.values()):
        raise TypeError(f"{name} holds something other than strings")
    return value
