"""Sentencepiece model files taken apart and put together, as far as token ids need it.

A model file is a protocol buffer (`ModelProto` of sentencepiece_model.proto): field 1 holds a
piece each, in the order of their ids; field 2 says how the model was trained, field 3 how text
is normalised. Every other field is carried along as it is. Nothing here needs the protobuf
package.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["PieceKind", "character_model", "is_character_model", "piece_names", "reorder_pieces"]

PieceKind = Literal["normal", "unknown", "symbol"]

# Fields of ModelProto.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
# Fields of SentencePiece.
PIECE, SCORE, TYPE = 1, 2, 3
# Fields of TrainerSpec and NormalizerSpec.
MODEL_TYPE, UNK_SURFACE = 3, 44
NAME, DUMMY_PREFIX, REMOVE_SPACES, ESCAPE_SPACES = 1, 3, 4, 5
CHARACTERS = 4
TYPES: dict[PieceKind, int] = {"normal": 1, "unknown": 2, "symbol": 4}
CONTROL = 3
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class _Field:
    """One field as it stands in the file; `content` is its payload where it holds bytes."""

    number: int
    content: bytes
    value: int
    raw: bytes


def piece_names(model: bytes) -> list[tuple[str, bool]]:
    """Every piece in the order of ids, and whether it stands for no text (`<s>`, `</s>`, pad).

    Raises ValueError for bytes that are no such file.
    """
    pieces = [field for field in _fields(model) if field.number == PIECES]
    return [(_name(piece), _type(piece) == CONTROL) for piece in pieces]


def is_character_model(model: bytes) -> bool:
    """Whether the model cuts text into single characters."""
    trainers = [field for field in _fields(model) if field.number == TRAINER]
    settings = [setting for trainer in trainers for setting in _fields(trainer.content)]
    return any(s.number == MODEL_TYPE and s.value == CHARACTERS for s in settings)


def reorder_pieces(model: bytes, names: Sequence[str], unk_surface: str) -> bytes:
    """The same model with these pieces alone, in this order; it cuts text as before.

    `names` must be pieces of the model; those left out must be control pieces, which no text
    becomes. Scores stay with their pieces, and only they decide how text is cut.
    """
    fields = list(_fields(model))
    pieces = {_name(field): field.raw for field in fields if field.number == PIECES}
    rest = [_with_unk(field, unk_surface) for field in fields if field.number != PIECES]
    return b"".join([*(pieces[name] for name in names), *rest])


def character_model(pieces: Sequence[tuple[str, PieceKind]], unk_surface: str) -> bytes:
    """A model that cuts text into characters, with these pieces in the order of ids.

    A "symbol" is cut out of text as a whole, whatever its length. Text is taken as it is:
    no normalisation, no space put before it.
    """
    listed = [
        _bytes(PIECES, _bytes(PIECE, name.encode()) + _number(TYPE, TYPES[kind]))
        for name, kind in pieces
    ]
    trainer = _number(MODEL_TYPE, CHARACTERS) + _bytes(UNK_SURFACE, unk_surface.encode())
    normalizer = b"".join(
        [
            _bytes(NAME, b"identity"),
            _number(DUMMY_PREFIX, 0),
            _number(REMOVE_SPACES, 0),
            _number(ESCAPE_SPACES, 1),
        ]
    )
    return b"".join([*listed, _bytes(TRAINER, trainer), _bytes(NORMALIZER, normalizer)])


def _name(piece: _Field) -> str:
    for field in _fields(piece.content):
        if field.number == PIECE:
            return field.content.decode("utf-8")
    raise ValueError("a piece without a name")


def _type(piece: _Field) -> int:
    return next((f.value for f in _fields(piece.content) if f.number == TYPE), TYPES["normal"])


def _with_unk(field: _Field, unk_surface: str) -> bytes:
    """The text of unknown pieces set; of a field that comes twice, the last counts."""
    if field.number != TRAINER:
        return field.raw
    return _bytes(TRAINER, field.content + _bytes(UNK_SURFACE, unk_surface.encode()))


def _fields(message: bytes) -> Iterator[_Field]:
    place = 0
    while place < len(message):
        start = place
        key, place = _varint(message, place)
        number, wire = key >> 3, key & 7
        content, value = b"", 0
        if wire == VARINT:
            value, place = _varint(message, place)
        elif wire == BYTES:
            size, place = _varint(message, place)
            content, place = message[place : place + size], place + size
        elif wire in (FIXED32, FIXED64):
            place += 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"no protocol buffer: wire type {wire}")
        if place > len(message):
            raise ValueError("no protocol buffer: cut off")
        yield _Field(number, content, value, message[start:place])


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(message):
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not byte & 0x80:
            return value, place
    raise ValueError("no protocol buffer: cut off")


def _bytes(number: int, content: bytes) -> bytes:
    return _encode(number << 3 | BYTES) + _encode(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _encode(number << 3 | VARINT) + _encode(value)


def _encode(value: int) -> bytes:
    """A varint: seven bits a byte, the lowest first."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
