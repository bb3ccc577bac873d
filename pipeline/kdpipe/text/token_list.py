"""The token list of an ESPnet model as a tokenizer of ours, id for id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from kdpipe.errors import DataError
from kdpipe.text.sentencepiece_model import (
    PieceKind,
    character_model,
    piece_names,
    reorder_pieces,
)
from kdpipe.text.tokenizer import SPACE_MARK, UNK_TEXT

__all__ = ["bpe_tokenizer", "char_tokenizer"]

SPACE_TOKEN = "<space>"
REMEDY = "Take the token list and the bpe.model of one and the same model"


def char_tokenizer(tokens: Sequence[str], symbols: bool = False) -> bytes:
    """The model file of a tokenizer whose piece i is `tokens[i]`.

    `tokens` has blank and unk first and sos/eos last. `<space>` stands for the space. With
    `symbols`, tokens of several characters are cut out of text as a whole; otherwise no text
    becomes them. Raises `DataError` for a token that comes twice.
    """
    names = [SPACE_MARK if token == SPACE_TOKEN else token for token in tokens[2:-1]]
    _require_distinct([UNK_TEXT, *names])
    pieces: list[tuple[str, PieceKind]] = [(UNK_TEXT, "unknown")]
    pieces += [(name, "symbol" if symbols and len(name) > 1 else "normal") for name in names]
    return character_model(pieces, UNK_TEXT)


def bpe_tokenizer(tokens: Sequence[str], model: bytes) -> bytes:
    """The model file of a tokenizer whose piece i is `tokens[i]` and that cuts text as `model`.

    `tokens` has blank and unk first and sos/eos last. Raises `DataError` where they are not the
    pieces of `model`, in whatever order, or `model` is no sentencepiece model.
    """
    names = [UNK_TEXT, *tokens[2:-1]]
    _require_distinct(names)
    try:
        found = piece_names(model)
    except ValueError as error:
        raise DataError("bpe.model", f"no sentencepiece model ({error})", REMEDY) from error
    held = {name for name, control in found if not control}
    _require_same(set(names), held)
    return reorder_pieces(model, names, UNK_TEXT)


def _require_distinct(names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError("token_list", f"{twice[0]!r} comes twice", "Take the original config")


def _require_same(listed: set[str], held: set[str]) -> None:
    only_listed, only_held = sorted(listed - held), sorted(held - listed)
    if only_listed:
        problem = f"has no piece for {len(only_listed)} tokens of the list"
        raise DataError("bpe.model", f"{problem} (first {only_listed[0]!r})", REMEDY)
    if only_held:
        problem = f"lacks {len(only_held)} pieces of bpe.model (first {only_held[0]!r})"
        raise DataError("token_list", problem, REMEDY)
