"""Text normalisation: explicit and minimal."""

from __future__ import annotations

import unicodedata
from typing import Literal

__all__ = ["TextCase", "normalise"]

TextCase = Literal["keep", "upper", "lower"]


def normalise(text: str, case: TextCase = "keep") -> str:
    """Unicode NFC, every run of white space one space, none at the ends; then the case asked."""
    collapsed = " ".join(unicodedata.normalize("NFC", text).split())
    if case == "keep":
        return collapsed
    # Changing case can undo NFC (capital I with dot), so it is applied again.
    cased = collapsed.upper() if case == "upper" else collapsed.lower()
    return unicodedata.normalize("NFC", cased)
