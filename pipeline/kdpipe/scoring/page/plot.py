"""Axes, and the few marks that the charts are made of, as inline SVG.

Coordinates are CSS pixels at the width a chart is designed for. Colours, type and stroke widths
come from the page's style by class, so that a chart follows the reader's light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kdpipe.scoring.page.markup import Html, el, join, number

__all__ = [
    "Axis",
    "Panel",
    "Pixels",
    "dodge",
    "end_names",
    "label",
    "line_mark",
    "linear_axis",
    "log_axis",
    "marker",
    "plain_ticks",
    "polyline",
    "rule",
    "shorten",
    "svg",
]

Pixels = int | float
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
DECADE = (1.0, 2.0, 5.0)


@dataclass(frozen=True)
class Axis:
    """Maps values from `low` to `high` onto pixels from `start` to `end`."""

    low: int | float
    high: int | float
    start: Pixels
    end: Pixels
    log: bool = False

    def at(self, value: int | float) -> Pixels:
        """The pixel of a value; values beyond the axis stay on its edge."""
        low, high, place = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, place = math.log(low), math.log(high), math.log(place)
        share = (place - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self, about: int = 4) -> list[float]:
        """Round values on the axis, `about` as many."""
        return _log_ticks(self.low, self.high, about) if self.log else plain_ticks(
            self.low, self.high, about
        )  # fmt: skip


def plain_ticks(low: int | float, high: int | float, about: int = 4) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten between two values."""
    span = high - low
    if span <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(s * power for s in STEPS if span / (s * power) <= about * 1.3)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: int | float, high: int | float, about: int) -> list[float]:
    """1, 2, 5 of every decade, fewer of them on a long axis; round values on a short one."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in (DECADE, (1.0, 3.0), (1.0,)):
        ticks = [f * 10.0**d for d in decades for f in factors]
        ticks = [t for t in ticks if low * 0.999 <= t <= high * 1.001]
        if len(ticks) <= about * 1.5:
            break
    every = math.ceil(len(ticks) / (about * 1.5))
    return ticks[::every] if len(ticks) >= 2 else plain_ticks(low, high, about)


def linear_axis(values: Iterable[float], start: Pixels, end: Pixels) -> Axis:
    """From zero to a round value that leaves room above the largest."""
    top = max(values, default=0.0) or 1.0
    ticks = plain_ticks(0.0, top)
    step = ticks[1] - ticks[0]
    return Axis(0.0, math.ceil(top / step - 1e-9) * step, start, end)


def log_axis(values: Iterable[float], start: Pixels, end: Pixels, room: float = 1.12) -> Axis:
    """Around all of `values`, which must be above zero, with `room` (a factor) at both ends."""
    known = list(values)
    return Axis(min(known) / room, max(known) * room, start, end, log=True)


@dataclass(frozen=True)
class Panel:
    """The area of a chart: an axis across and an axis up, in a picture of width by height."""

    width: Pixels
    height: Pixels
    x: Axis
    y: Axis

    def frame(
        self,
        title: str,
        across: str,
        x_text: Callable[[float], str],
        y_text: Callable[[float], str],
        x_ticks: Sequence[float] | None = None,
    ) -> Html:
        """Title, grid, tick labels, and the name of the axis across.

        The title names the axis up, with its unit.
        """
        parts = [label(0, 13, title, "title")]
        for tick in self.y.ticks():
            y = self.y.at(tick)
            parts.append(rule(self.x.start, y, self.x.end, y, "grid"))
            parts.append(label(self.x.start - 6, y + 3.5, y_text(tick), "tick", "end"))
        base = self.y.start
        for tick in self.x.ticks() if x_ticks is None else x_ticks:
            x = self.x.at(tick)
            parts.append(rule(x, base, x, base + 4, "axis"))
            parts.append(label(x, base + 16, x_text(tick), "tick", "middle"))
        parts.append(rule(self.x.start, base, self.x.end, base, "axis"))
        parts.append(label(self.x.end, base + 31, across, "tick", "end"))
        return join(parts)


def svg(width: Pixels, height: Pixels, name: str, *children: Html, class_: str = "chart") -> Html:
    """A picture that scales with its box; `name` is read out to those who do not see it."""
    return el(
        "svg", *children, class_=class_, viewBox=f"0 0 {number(width)} {number(height)}",
        role="img", aria_label=name,
    )  # fmt: skip


def label(x: Pixels, y: Pixels, content: str, class_: str, anchor: str | None = None) -> Html:
    """A line of text with its baseline at y; `anchor` is start, middle or end."""
    return el("text", content, x=float(x), y=float(y), class_=class_, text_anchor=anchor)


def rule(x1: Pixels, y1: Pixels, x2: Pixels, y2: Pixels, class_: str) -> Html:
    """A straight line."""
    return el("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)


def polyline(points: Iterable[tuple[Pixels, Pixels]], class_: str) -> Html:
    """Points (pixels) joined by a line."""
    text = " ".join(f"{number(x, 1)},{number(y, 1)}" for x, y in points)
    return el("polyline", points=text, class_=class_)


def line_mark(panel: Panel, points: Sequence[tuple[float, float]], class_: str, tip: str) -> Html:
    """A curve with a dot on its last point, which tells `tip`."""
    pixels = [(panel.x.at(x), panel.y.at(y)) for x, y in points]
    last = el("circle", cx=pixels[-1][0], cy=pixels[-1][1], r=2.6, class_="dot", data_tip=tip)
    return el("g", polyline(pixels, "line"), last, class_=class_)


def marker(shape: str, x: Pixels, y: Pixels, class_: str, tip: str, size: float = 5.0) -> Html:
    """A point of a scatter chart: circle, square, or triangle."""
    if shape == "circle":
        return el("circle", cx=x, cy=y, r=size, class_=class_, data_tip=tip)
    if shape == "square":
        side = size * 1.8
        return el(
            "rect", x=x - side / 2, y=y - side / 2, width=side, height=side, class_=class_,
            data_tip=tip,
        )  # fmt: skip
    corners = [(x, y - size * 1.25), (x + size * 1.15, y + size * 0.85),
               (x - size * 1.15, y + size * 0.85)]  # fmt: skip
    text = " ".join(f"{number(a)},{number(b)}" for a, b in corners)
    return el("polygon", points=text, class_=class_, data_tip=tip)


def end_names(
    panel: Panel, ends: Sequence[tuple[float, float, str, str]], gap: Pixels = 13
) -> list[Html]:
    """A name (x, y, text, colour) right of the end of each line, moved apart where they touch."""
    heights = [panel.y.at(y) for _, y, _, _ in ends]
    places = dodge(heights, gap, panel.y.end + 4, panel.y.start - 2)
    return [
        label(panel.x.at(x) + 7, place + 4, text, f"name {colour}")
        for (x, _, text, colour), place in zip(ends, places, strict=True)
    ]


def dodge(places: Sequence[Pixels], gap: Pixels, low: Pixels, high: Pixels) -> list[Pixels]:
    """Places (pixels) moved as little as it takes to lie `gap` apart, from `low` to `high`."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved: list[Pixels] = [0.0] * len(places)
    before = low - gap
    for i in order:
        before = moved[i] = max(places[i], before + gap)
    after = high + gap
    for i in reversed(order):
        after = moved[i] = min(moved[i], after - gap)
    return moved


def shorten(text: str, length: int) -> str:
    """At most `length` characters, the last an ellipsis where some were cut."""
    return text if len(text) <= length else text[: length - 1] + "\u2026"
