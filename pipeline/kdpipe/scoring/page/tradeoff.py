"""What accuracy costs: error against real-time factor over all decode outputs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from kdpipe.scoring.page.markup import Html, el, join
from kdpipe.scoring.page.material import DecodeRun, Material, Section
from kdpipe.scoring.page.names import (
    colours,
    decode_order,
    legend,
    percent,
    search_labels,
    splits,
)
from kdpipe.scoring.page.plot import Panel, label, linear_axis, log_axis, marker, rule, svg
from kdpipe.scoring.page.tabs import tabs

__all__ = ["tradeoff_section"]

SHAPES = {"ctc": "circle", "mask-ctc": "square", "ar": "triangle"}
WIDTH, HEIGHT = 480, 330
LEFT, RIGHT, TOP, BOTTOM = 40, 14, 30, 42
TEXT_WIDTH, TEXT_HEIGHT = 6.1, 13.0
Box = tuple[float, float, float, float]


def tradeoff_section(material: Material) -> Section:
    """CER and WER against RTF, a point an output."""
    title = "Accuracy against speed"
    usable = {
        split: decodes
        for split in splits(material.decodes)
        if len(decodes := _measured(material, split)) >= 2
    }
    if not usable:
        return Section(
            "speed", title,
            missing="Fewer than two timed decode outputs of one split. Decode with other beams or"
            " modes, for example `kdpipe decode --beam 1` and `--mode ctc`, each to an --out of"
            " its own.",
        )  # fmt: skip
    lead = (
        "Lower is more accurate, further left is faster; the RTF is wall-clock seconds of search"
        " and model per second of speech as `kdpipe decode` measured them, so compare outputs of"
        " one machine and one number of threads. Upright lines: 95% intervals. Dashed: the"
        " outputs that no other beats in both."
    )
    shown = {decode.model for decodes in usable.values() for decode in decodes}
    models = [model for model in material.models if model.name in shown]
    panels = {split: _charts(material, decodes) for split, decodes in usable.items()}
    body = join([legend(models, colours(material.models)), _shapes(usable), tabs("speed", panels)])
    return Section("speed", title, lead, body)


def _measured(material: Material, split: str) -> list[DecodeRun]:
    decodes = decode_order(material, split)
    return [d for d in decodes if d.report.wer is not None and d.report.rtf > 0]


def _shapes(usable: dict[str, list[DecodeRun]]) -> Html:
    names = {"ctc": "greedy CTC", "mask-ctc": "Mask-CTC", "ar": "joint CTC/attention"}
    modes = {decode.report.mode for decodes in usable.values() for decode in decodes}
    items = [
        el("li", el("svg", marker(SHAPES[mode], 7.0, 7.0, "fill plainmark", name), class_="shape",
                    viewBox="0 0 14 14"), name)
        for mode, name in names.items()
        if mode in modes
    ]  # fmt: skip
    return el("ul", *items, class_="legend")


def _charts(material: Material, decodes: Sequence[DecodeRun]) -> Html:
    charts = [_chart(material, decodes, unit) for unit in ("wer", "cer")]
    return el("div", *charts, class_="grid two")


def _chart(material: Material, decodes: Sequence[DecodeRun], unit: str) -> Html:
    counts = [getattr(decode.report, unit) for decode in decodes]
    tops = [100 * max(count.ci95[1], count.rate) for count in counts]
    x = log_axis([d.report.rtf for d in decodes], LEFT, WIDTH - RIGHT, room=1.35)
    panel = Panel(WIDTH, HEIGHT, x, linear_axis(tops, HEIGHT - BOTTOM, TOP))
    labels = search_labels(decodes)
    chosen = colours(material.models)
    places = [(panel.x.at(d.report.rtf), panel.y.at(100 * c.rate))
              for d, c in zip(decodes, counts, strict=True)]  # fmt: skip
    marks = []
    for decode, count, search, (across, up) in zip(decodes, counts, labels, places, strict=True):
        colour = chosen.get(decode.model, "k0")
        low, high = (panel.y.at(100 * value) for value in count.ci95)
        tip = (
            f"{decode.model}, {search}: {unit.upper()} {percent(count.rate)}%,"
            f" RTF {decode.report.rtf:.4f}"
        )
        shape = SHAPES.get(decode.report.mode, "circle")
        marks.append(rule(across, low, across, high, f"interval-line {colour}"))
        marks.append(marker(shape, across, up, f"fill {colour} ring", tip))
    parts = [
        panel.frame(f"{unit.upper()}, %", "RTF (log scale), seconds per second of speech",
                    lambda v: f"{v:g}", lambda v: f"{v:g}"),
        _frontier(places),
        *_same_search(decodes, places, chosen),
        *marks,
        *_names(panel, decodes, labels, places, chosen),
    ]  # fmt: skip
    return svg(WIDTH, HEIGHT, f"{unit.upper()} against real-time factor", *parts)


def _frontier(places: Sequence[tuple[float, float]]) -> Html:
    """Points that no other is both left of and below, joined."""
    best, kept = float("-inf"), []
    for x, y in sorted(places, key=lambda place: (place[0], -place[1])):
        if y > best:
            best = y
            kept.append((x, y))
    text = " ".join(f"{x:.1f},{y:.1f}" for x, y in kept)
    return el("polyline", points=text, class_="frontier")


def _same_search(
    decodes: Sequence[DecodeRun], places: Sequence[tuple[float, float]], chosen: dict[str, str]
) -> list[Html]:
    """A thin line through the beams of one model and search, all else equal."""

    def key(index: int) -> tuple[str, str, str]:
        decode = decodes[index]
        kept = {k: v for k, v in decode.search.items() if k not in ("beam", "nbest", "mode")}
        return decode.model, decode.report.mode, repr(sorted(kept.items()))

    lines = []
    for (model, *_), group in groupby(sorted(range(len(decodes)), key=key), key=key):
        chain = sorted(group, key=lambda index: decodes[index].report.beam)
        points = " ".join(f"{places[i][0]:.1f},{places[i][1]:.1f}" for i in chain)
        if len(chain) > 1:
            lines.append(el("polyline", points=points, class_=f"thin {chosen.get(model, 'k0')}"))
    return lines


def _names(
    panel: Panel,
    decodes: Sequence[DecodeRun],
    labels: Sequence[str],
    places: Sequence[tuple[float, float]],
    chosen: dict[str, str],
) -> list[Html]:
    """What sets each point apart, where there is room beside it; its tip tells the rest."""
    taken: list[Box] = [(x - 7, y - 7, x + 7, y + 7) for x, y in places]
    written = []
    for decode, search, (x, y) in zip(decodes, labels, places, strict=True):
        text = search.partition(", ")[2] or "greedy"
        colour = chosen.get(decode.model, "k0")
        for across, anchor in ((x + 10, "start"), (x - 10, "end")):
            width = TEXT_WIDTH * len(text)
            left = across if anchor == "start" else across - width
            box = (left, y - TEXT_HEIGHT / 2, left + width, y + TEXT_HEIGHT / 2)
            if _fits(box, panel, taken):
                taken.append(box)
                written.append(label(across, y + 4, text, f"name {colour}", anchor))
                break
    return written


def _fits(box: Box, panel: Panel, taken: Sequence[Box]) -> bool:
    if box[0] < panel.x.start + 2 or box[2] > panel.width:
        return False
    return not any(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
        for other in taken
    )
