"""Text normalisation: explicit and minimal."""

from __future__ import annotations

import unicodedata
from typing import Literal

__all__ = ["TextCase", "TextSpaces", "normalise"]

TextCase = Literal["keep", "upper", "lower"]
TextSpaces = Literal["keep", "remove"]


def normalise(text: str, case: TextCase = "keep", spaces: TextSpaces = "keep") -> str:
    """Unicode NFC, every run of white space one space, none at the ends; then the case asked.

    `spaces="remove"` leaves no space at all (word-segmented Mandarin).
    """
    separator = " " if spaces == "keep" else ""
    collapsed = separator.join(unicodedata.normalize("NFC", text).split())
    cased = {"keep": collapsed, "upper": collapsed.upper(), "lower": collapsed.lower()}[case]
    # Another case (capital I with dot), or a mark with no space before it, can undo NFC.
    return unicodedata.normalize("NFC", cased)
