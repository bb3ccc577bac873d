"""Another recogniser's written text in the manner of a student's texts."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Literal

from kdpipe.text.normalise import TextCase, TextSpaces, normalise
from kdpipe.text.tokenizer import Tokenizer

__all__ = ["Punctuation", "SpokenStyle", "case_of", "respell"]

Punctuation = Literal["strip", "keep"]

TYPED_APOSTROPHE, TYPESET_APOSTROPHE = "'", "\u2019"
# These are read aloud: without them the text would not be what was said.
READ_ALOUD = "%&@#"


@dataclass(frozen=True)
class SpokenStyle:
    """How texts are respelled; `punctuation` "strip" takes out marks the tokenizer cannot write."""

    case: TextCase = "keep"
    spaces: TextSpaces = "keep"
    punctuation: Punctuation = "strip"


def case_of(tokenizer: Tokenizer) -> TextCase:
    """The case in which all the tokenizer's letters are; "keep" where it has both or neither."""
    letters = [char for piece in tokenizer.pieces[2:-1] for char in piece if char.isalpha()]
    upper, lower = any(map(str.isupper, letters)), any(map(str.islower, letters))
    if upper == lower:
        return "keep"
    return "upper" if upper else "lower"


def respell(text: str, style: SpokenStyle, tokenizer: Tokenizer) -> str:
    """`text` as the student's texts are spelled; what it cannot spell stays as it is.

    Stripping takes out silent punctuation (Unicode P, but for % & @ #) that the tokenizer has no
    token for: dashes become spaces, other marks nothing. Numbers stay digits.
    """
    if style.punctuation == "strip":
        silent = {char for char in set(text) if _is_silent(char) and _is_unknown(char, tokenizer)}
        text = "".join(_replacement(char, tokenizer) if char in silent else char for char in text)
    return normalise(text, style.case, style.spaces)


def _is_silent(char: str) -> bool:
    return unicodedata.category(char).startswith("P") and char not in READ_ALOUD


def _is_unknown(char: str, tokenizer: Tokenizer) -> bool:
    return tokenizer.unk_id in tokenizer.encode(char)


def _replacement(char: str, tokenizer: Tokenizer) -> str:
    if char == TYPESET_APOSTROPHE and not _is_unknown(TYPED_APOSTROPHE, tokenizer):
        return TYPED_APOSTROPHE
    return " " if unicodedata.category(char) == "Pd" else ""
