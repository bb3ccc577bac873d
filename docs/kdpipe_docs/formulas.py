"""LaTeX to MathML while the site is built: browsers show it without a script or a network."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

__all__ = ["formulas_to_mathml"]

FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def formulas_to_mathml(page: str) -> str:
    """Replace what pymdownx.arithmatex marked by MathML."""
    return FORMULA.sub(_convert, page)


def _convert(match: re.Match[str]) -> str:
    display = "block" if match["tag"] == "div" else "inline"
    return convert(html.unescape(match["latex"]).strip(), display=display)
