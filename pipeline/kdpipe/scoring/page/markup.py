"""Markup by functions: whatever is not `Html` already is escaped on its way into the page."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

__all__ = ["Html", "el", "join", "number", "spoken"]

VOID = {"br", "hr", "img", "input", "link", "meta"}
# Control characters have no place in HTML; they are shown as the replacement character.
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Html(str):
    """Text that is markup already. Made only by the functions of this module."""

    __slots__ = ()


def el(name: str, /, *children: Html | str, **attributes: str | int | float | None) -> Html:
    """An element. Children that are plain text are escaped, and so is every attribute.

    A trailing underscore of an attribute is dropped (`class_`), others become hyphens; one that
    is None is left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(parts: Iterable[Html | str], between: str = "") -> Html:
    """Parts one after the other, plain text escaped; `between` too."""
    return Html(_safe(between).join(_safe(part) for part in parts))


def spoken(text: str) -> Html:
    """A transcript: its own writing direction never leaks into the page."""
    return el("bdi", text)


def number(value: int | float, digits: int = 2) -> str:
    """A coordinate: no more digits than can be seen."""
    text = f"{value:.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def _safe(part: Html | str) -> str:
    return part if isinstance(part, Html) else escape(CONTROLS.sub("\ufffd", part), quote=True)


def _attribute(value: str | int | float) -> str:
    return number(value) if isinstance(value, float) else _safe(str(value))
