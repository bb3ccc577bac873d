"""The worst utterances of every decode output, aligned with their references."""

from __future__ import annotations

import numpy as np

from kdpipe.scoring.alignment import AlignedUnit, align_units
from kdpipe.scoring.page.lengths import NEEDS_DATA, error_legend
from kdpipe.scoring.page.markup import Html, el, join, spoken
from kdpipe.scoring.page.material import DecodeRun, Material, Section
from kdpipe.scoring.page.names import decode_order, search_labels, splits
from kdpipe.scoring.page.tabs import tabs

__all__ = ["worst_ids", "worst_section"]

MOST = 6
MOST_UNITS = 120
CLASSES = {"equal": "eq", "substitute": "es", "delete": "ed", "insert": "ei"}
READ = {"substitute": "read as", "delete": "left out", "insert": "added"}


def worst_ids(decode: DecodeRun, most: int = MOST) -> list[tuple[str, int, int]]:
    """(id, errors, reference units) of those with the most errors; the higher rate goes first
    among equals, then the id. Utterances without an error are left out."""
    if decode.errors is None:
        return []
    errors, reference = decode.errors.errors, decode.errors.reference
    rows = [
        (name, int(errors[i]), int(reference[i]))
        for i, name in enumerate(decode.errors.ids)
        if errors[i] > 0
    ]
    return sorted(rows, key=lambda row: (-row[1], row[2], row[0]))[:most]


def worst_section(material: Material) -> Section:
    """Alignments with their errors coloured."""
    title = "Worst utterances"
    known = [decode for decode in material.decodes if decode.errors is not None]
    if not known:
        return Section("worst", title, missing=NEEDS_DATA)
    lead = (
        "Above the reference, below it what was recognised; aligned with the fewest errors."
        f" The {MOST} utterances with the most errors of each output."
    )
    panels = {split: _split(material, split) for split in splits(known)}
    return Section("worst", title, lead, join([error_legend(), tabs("worst", panels)]))


def _split(material: Material, split: str) -> Html:
    decodes = [d for d in decode_order(material, split) if d.errors is not None]
    labels = search_labels(decodes)
    return join(
        _output(decode, search, i == 0)
        for i, (decode, search) in enumerate(zip(decodes, labels, strict=True))
    )


def _output(decode: DecodeRun, search: str, first: bool) -> Html:
    assert decode.errors is not None
    wrong = int(np.count_nonzero(decode.errors.errors))
    total = len(decode.errors.ids)
    summary = el(
        "summary", el("b", decode.model), f" {search}",
        el("span", f" {wrong} of {total} utterances have errors", class_="muted"),
    )  # fmt: skip
    rows = [_utterance(decode, *row) for row in worst_ids(decode)]
    return el("details", summary, *rows, open="" if first else None, class_="output")


def _utterance(decode: DecodeRun, name: str, errors: int, reference: int) -> Html:
    units = align_units(*decode.texts[name], decode.unit)
    cut = len(units) - MOST_UNITS
    more = [el("span", f" and {cut} more", class_="muted")] if cut > 0 else []
    head = el(
        "p", el("code", name), f" {errors} errors in {reference} {decode.units}", class_="utt"
    )
    columns = [_column(aligned) for aligned in units[:MOST_UNITS]]
    return el("div", head, el("div", *columns, *more, class_=f"aligned {decode.unit}"),
              class_="worst")  # fmt: skip


def _column(unit: AlignedUnit) -> Html:
    tip = None
    if unit.fate != "equal":
        tip = " ".join(part for part in (unit.reference, READ[unit.fate], unit.hypothesis) if part)
    return el(
        "span",
        el("span", spoken(unit.reference or "\u00b7"), class_="ref"),
        el("span", spoken(unit.hypothesis or "\u00b7"), class_="hyp"),
        class_=f"unit {CLASSES[unit.fate]}", data_tip=tip,
    )  # fmt: skip
