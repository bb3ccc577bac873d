"""Substitutions, deletions and insertions by the length of the reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kdpipe.scoring.errors import UtteranceErrors
from kdpipe.scoring.page.markup import Html, el, join
from kdpipe.scoring.page.material import DecodeRun, Material, Section
from kdpipe.scoring.page.names import decode_order, search_labels, short_search, splits
from kdpipe.scoring.page.plot import Axis, label, plain_ticks, rule, shorten, svg
from kdpipe.scoring.page.tabs import tabs

__all__ = ["NEEDS_DATA", "error_legend", "length_bins", "length_rates", "lengths_section"]

NEEDS_DATA = (
    "No decode output whose data is at hand: the references are in the prepared data. Add it to"
    " the runs or give it with `--data DATA`."
)
MOST_BINS = 5
MOST_PANELS = 12
WIDTH, HEIGHT = 340, 220
LEFT, TOP, BOTTOM = 34, 52, 40
KINDS = (("substitutions", "es"), ("deletions", "ed"), ("insertions", "ei"))
Bin = tuple[int, int]


def length_bins(reference: NDArray[np.int64], most: int = MOST_BINS) -> list[Bin]:
    """Up to `most` ranges of reference length (first, last), about as many utterances in each.

    Only lengths that occur are ends of a range; utterances without reference are in none.
    """
    lengths = np.sort(reference[reference > 0])
    if not len(lengths):
        return []
    places = [(i + 1) * len(lengths) // most - 1 for i in range(most)]
    ends = sorted({int(lengths[max(place, 0)]) for place in places} | {int(lengths[-1])})
    starts = [int(lengths[0]), *(end + 1 for end in ends[:-1])]
    return list(zip(starts, ends, strict=True))


def length_rates(errors: UtteranceErrors, bins: Sequence[Bin]) -> NDArray[np.float64]:
    """(bins, 3) substitutions, deletions and insertions per reference unit in each range."""
    rows = []
    for first, last in bins:
        inside = (errors.reference >= first) & (errors.reference <= last)
        total = max(int(errors.reference[inside].sum()), 1)
        rows.append([getattr(errors, kind)[inside].sum() / total for kind, _ in KINDS])
    return np.array(rows, dtype=np.float64).reshape(len(bins), len(KINDS))


def lengths_section(material: Material) -> Section:
    """A panel of stacked bars for every decode output."""
    title = "Errors by reference length"
    known = [decode for decode in material.decodes if decode.errors is not None]
    if not known:
        return Section("lengths", title, missing=NEEDS_DATA)
    unit = "words" if all(d.unit == "word" for d in known) else "characters"
    lead = (
        f"Errors per 100 reference {unit}, by the number of {unit} in the reference; the ranges"
        " hold about as many utterances each, and the scale is one for all panels of a split."
        " Deletions that grow with length are a CTC or length problem, insertions in short"
        " utterances a silence problem, substitutions a matter of the acoustics or the decoder."
    )
    panels = {split: _panels(material, split) for split in splits(known)}
    return Section("lengths", title, lead, join([error_legend(), tabs("lengths", panels)]))


def error_legend() -> Html:
    """The three colours of errors."""
    items = [el("li", el("span", "", class_=f"swatch {colour}"), kind) for kind, colour in KINDS]
    return el("ul", *items, class_="legend")


def _panels(material: Material, split: str) -> Html:
    everything = [d for d in decode_order(material, split) if d.errors is not None]
    labels = search_labels(everything)
    decodes = everything[:MOST_PANELS]
    rates = []
    for decode in decodes:
        assert decode.errors is not None
        bins = length_bins(decode.errors.reference)
        rates.append((bins, 100 * length_rates(decode.errors, bins)))
    top = max((float(r.sum(axis=1).max(initial=0)) for _, r in rates), default=0.0) or 1.0
    charts = [
        _chart(decode, search, bins, table, top)
        for decode, search, (bins, table) in zip(decodes, labels, rates, strict=False)
    ]
    left = len(everything) - len(decodes)
    more = [el("p", f"{left} further outputs are not drawn.", class_="note")] if left else []
    return join([el("div", *charts, class_="grid three"), *more])


def _chart(
    decode: DecodeRun, search: str, bins: Sequence[Bin], table: NDArray[np.float64], top: float
) -> Html:
    bottom = HEIGHT - BOTTOM
    axis = Axis(0.0, top * 1.05, bottom, TOP)
    parts = [
        label(0, 13, shorten(decode.model, 40), "title"),
        label(0, 29, shorten(short_search(search), 52), "tick"),
    ]
    for tick in plain_ticks(0.0, axis.high):
        y = axis.at(tick)
        parts.append(rule(LEFT, y, WIDTH, y, "grid"))
        parts.append(label(LEFT - 6, y + 3.5, f"{tick:g}", "tick", "end"))
    slot = (WIDTH - LEFT) / max(len(bins), 1)
    for i, (span, row) in enumerate(zip(bins, table, strict=True)):
        x = LEFT + (i + 0.16) * slot
        parts += _stack(axis, x, slot * 0.68, row, _range(span))
        parts.append(label(LEFT + (i + 0.5) * slot, bottom + 16, _range(span), "tick", "middle"))
    parts.append(rule(LEFT, bottom, WIDTH, bottom, "axis"))
    parts.append(label(WIDTH, bottom + 33, f"{decode.units} in the reference", "tick", "end"))
    name = f"Errors of {decode.model}, {search}, by reference length"
    return svg(WIDTH, HEIGHT, name, *parts)


def _range(span: Bin) -> str:
    return str(span[0]) if span[0] == span[1] else f"{span[0]}\u2013{span[1]}"


def _stack(axis: Axis, x: float, width: float, row: NDArray[np.float64], span: str) -> list[Html]:
    parts, below = [], 0.0
    for value, (kind, colour) in zip(row.tolist(), KINDS, strict=True):
        y, height = axis.at(below + value), axis.at(below) - axis.at(below + value)
        tip = f"{span}: {value:.1f} {kind} per 100"
        parts.append(
            el("rect", x=x, y=y, width=width, height=height, class_=f"fill {colour}", data_tip=tip)
        )
        below += value
    return [*parts, label(x + width / 2, axis.at(below) - 4, f"{below:.0f}", "value small",
                          "middle")]  # fmt: skip
