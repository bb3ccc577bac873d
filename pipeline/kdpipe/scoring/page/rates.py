"""Error rates: the table, the bars with their intervals, and distillation's gain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdpipe.scoring.bootstrap import Comparison, compare_systems
from kdpipe.scoring.errors import ErrorCounts
from kdpipe.scoring.page.markup import Html, el, join
from kdpipe.scoring.page.material import DecodeRun, Material, Section
from kdpipe.scoring.page.names import (
    colours,
    decode_order,
    percent,
    plain_labels,
    search_labels,
    splits,
)
from kdpipe.scoring.page.tabs import tabs

__all__ = ["bars_section", "comparisons", "summary_section"]

NO_DECODES = (
    "No decode output with references among the runs. Make one with"
    " `kdpipe decode --model MODEL --data DATA --split test --out DIR` and name DIR."
)
ROW_PIXELS = 40
Pair = tuple[DecodeRun, DecodeRun, str]


def summary_section(material: Material) -> Section:
    """Every decode output with its errors, size and speed."""
    lead = (
        "CER and WER are (substitutions + deletions + insertions) / reference length, in percent,"
        " with the 95% interval of resampling utterances. I+D counts insertions and deletions"
        " alone, in words, or in characters where the script puts no spaces between words."
        " RTF is seconds of decoding per second of speech."
    )
    title = "Results"
    if not material.decodes:
        return Section("results", title, missing=NO_DECODES)
    panels = {split: _table(material, split) for split in splits(material.decodes)}
    return Section("results", title, lead, tabs("results", panels))


def _table(material: Material, split: str) -> Html:
    decodes = decode_order(material, split)
    chosen = colours(material.models)
    sizes = {model.name: model.parameters for model in material.models}
    best = {unit: _lowest(decodes, unit) for unit in ("cer", "wer")}
    units = " or ".join(sorted({decode.units for decode in decodes}, reverse=True))
    head = ("model", "search", "CER %", "WER %", f"I+D %, {units}", "RTF", "parameters",
            "utterances")  # fmt: skip
    rows = []
    for decode, search in zip(decodes, search_labels(decodes), strict=True):
        report = decode.report
        size = sizes.get(decode.model)
        swatch = el("span", "", class_=f"swatch {chosen.get(decode.model, 'k0')}")
        rows.append(
            el(
                "tr",
                el("th", swatch, decode.model, scope="row", title=f"decode output {decode.name}"),
                el("td", search),
                _rate_cell(report.cer, best["cer"]),
                _rate_cell(report.wer, best["wer"]),
                _length_cell(decode),
                el("td", f"{report.rtf:.4f}", class_="n",
                   title=f"{report.device}, threads: {report.threads}"),
                el("td", "\u2013" if size is None else f"{size / 1e6:.2f} M", class_="n"),
                el("td", str(report.utterances), class_="n"),
            )
        )  # fmt: skip
    header = [el("th", name, scope="col", class_=None if i < 2 else "n")
              for i, name in enumerate(head)]  # fmt: skip
    table = el("table", el("thead", el("tr", *header)), el("tbody", *rows))
    return join([el("div", table, class_="scroll"), _conditions(decodes), _gains(material, split)])


def _lowest(decodes: Sequence[DecodeRun], unit: str) -> float:
    counts = [getattr(decode.report, unit) for decode in decodes]
    return min((c.rate for c in counts if c is not None), default=-1.0)


def _rate_cell(counts: ErrorCounts | None, best: float) -> Html:
    if counts is None:
        return el("td", "\u2013", class_="n")
    rate = el("b" if counts.rate == best else "span", percent(counts.rate))
    interval = f"{percent(counts.ci95[0])}\u2013{percent(counts.ci95[1])}"
    tip = (
        f"{counts.substitutions} substitutions, {counts.deletions} deletions,"
        f" {counts.insertions} insertions of {counts.reference}"
    )
    return el("td", rate, el("span", interval, class_="interval"), class_="n", data_tip=tip)


def _length_cell(decode: DecodeRun) -> Html:
    """Insertions and deletions in the output's own unit, which its tip names."""
    counts = decode.counts
    if counts is None:
        return el("td", "\u2013", class_="n")
    tip = (
        f"{counts.insertions} insertions and {counts.deletions} deletions of {counts.reference}"
        f" {decode.units}"
    )
    return el("td", percent(counts.ins_del_rate), class_="n", data_tip=tip)


def _conditions(decodes: Sequence[DecodeRun]) -> Html:
    """What the figures of one table have in common, or not."""
    where = sorted({(d.report.device, d.report.threads) for d in decodes})
    machines = " and ".join(f"{device}, {threads} thread{'s' * (threads > 1)}"
                            for device, threads in where)  # fmt: skip
    skipped = max(d.report.skipped for d in decodes)
    seconds = max(d.report.audio_seconds for d in decodes)
    text = f"{seconds / 60:.1f} minutes of speech. Decoded on {machines}."
    if skipped:
        text += f" {skipped} utterances could not be used and are not counted."
    return el("p", text, " Bold: the lowest of its column.", class_="note")


def comparisons(material: Material, split: str) -> list[tuple[Pair, Comparison]]:
    """Each distilled student against each plain one of its size, by the same search and speech.

    Utterances are resampled together; a pair whose utterances differ is left out.
    """
    roles = {model.name: model.role for model in material.models}
    sizes = {model.name: model.parameters for model in material.models}
    decodes = decode_order(material, split)
    labelled = list(zip(decodes, plain_labels(decodes), strict=True))
    pairs = [
        (plain, other, search)
        for plain, search in labelled
        if roles.get(plain.model) == "plain student"
        for other, same in labelled
        if same == search and roles.get(other.model) == "distilled student"
        if sizes[other.model] == sizes[plain.model]
    ]
    return [(pair, found) for pair in pairs if (found := _compare(pair)) is not None]


def _compare(pair: Pair) -> Comparison | None:
    plain, other = pair[0].errors, pair[1].errors
    if plain is None or other is None or plain.ids != other.ids:
        return None
    if not len(plain.ids) or not np.array_equal(plain.reference, other.reference):
        return None
    return compare_systems(plain.errors, other.errors, plain.reference)


def _gains(material: Material, split: str) -> Html:
    """What distillation changes: the pairs of `comparisons` as a table."""
    found = comparisons(material, split)
    if not found:
        return Html("")
    unit = found[0][0][0].rate_name
    head = ("distilled", "plain", "search", f"{unit} % from \u2192 to", "difference, points",
            "relative", "p")  # fmt: skip
    header = [el("th", name, scope="col", class_=None if i < 3 else "n")
              for i, name in enumerate(head)]  # fmt: skip
    rows = [_gain_row(*pair, comparison) for pair, comparison in found]
    return join(
        [
            el("h3", "What distillation changes"),
            el("div", el("table", el("thead", el("tr", *header)), el("tbody", *rows)),
               class_="scroll"),
            el("p", "As many parameters, same search, same utterances, resampled together (10,000"
               " times): the difference with its 95% interval, and the two-sided p-value of there"
               " being none.",
               class_="note"),
        ]
    )  # fmt: skip


def _gain_row(plain: DecodeRun, other: DecodeRun, search: str, found: Comparison) -> Html:
    assert plain.errors is not None
    assert other.errors is not None
    reference = max(int(plain.errors.reference.sum()), 1)
    before = int(plain.errors.errors.sum()) / reference
    after = int(other.errors.errors.sum()) / reference
    interval = f"{_signed(found.ci95[0])} to {_signed(found.ci95[1])}"
    relative = f"{_signed(after / before - 1, 0)}%" if before else "\u2013"
    return el(
        "tr",
        el("th", other.model, scope="row"),
        el("td", plain.model),
        el("td", search),
        el("td", f"{percent(before)} \u2192 {percent(after)}", class_="n"),
        el("td", _signed(found.difference), el("span", interval, class_="interval"), class_="n"),
        el("td", relative, class_="n"),
        el("td", "<0.001" if found.p_value < 0.001 else f"{found.p_value:.3f}", class_="n"),
    )


def _signed(fraction: float, digits: int = 1) -> str:
    """Percent with a real minus sign."""
    text = f"{100 * fraction:+.{digits}f}"
    return text.replace("-", "\u2212")


def bars_section(material: Material) -> Section:
    """CER and WER of every output as bars with their intervals."""
    lead = (
        "Length of a bar: errors in percent of the reference. The line through its end is the 95%"
        " interval over resampled utterances; models whose intervals overlap widely may not differ."
    )
    title = "Error rates with intervals"
    scored = [d for d in material.decodes if d.report.wer is not None]
    if not scored:
        return Section("rates", title, missing=NO_DECODES)
    panels = {split: _bar_charts(material, split) for split in splits(scored)}
    return Section("rates", title, lead, tabs("rates", panels))


def _bar_charts(material: Material, split: str) -> Html:
    decodes = [d for d in decode_order(material, split) if d.report.wer is not None]
    labels = search_labels(decodes)
    charts = [_bars(material, decodes, labels, unit) for unit in ("cer", "wer")]
    return el("div", *charts, class_="grid two")


def _bars(
    material: Material, decodes: Sequence[DecodeRun], labels: Sequence[str], unit: str
) -> Html:
    """Horizontal bars on percentages of the picture's width, so that type keeps its size."""
    counts = [getattr(decode.report, unit) for decode in decodes]
    top = max(max(c.ci95[1], c.rate) for c in counts) or 1.0
    chosen = colours(material.models)
    name = f"{unit.upper()}, % of reference {'words' if unit == 'wer' else 'characters'}"
    parts = [el("text", name, x="0", y="13", class_="title")]
    for i, (decode, search, count) in enumerate(zip(decodes, labels, counts, strict=True)):
        y = 26 + i * ROW_PIXELS
        colour = chosen.get(decode.model, "k0")
        parts += _bar(y, f"{decode.model}, {search}", count, top, colour)
    height = 26 + len(decodes) * ROW_PIXELS
    return el("svg", *parts, class_="chart fluid", width="100%", height=height, role="img",
              aria_label=f"Bars of {name}")  # fmt: skip


def _bar(y: int, text: str, count: ErrorCounts, top: float, colour: str) -> list[Html]:
    """One bar: its label above it, the rate at the end of its interval."""

    def share(rate: float) -> str:
        return f"{84 * rate / top:.2f}%"

    middle = y + 24
    low, high = count.ci95
    interval = f"95% interval {percent(low)}\u2013{percent(high)}"
    return [
        el("text", text, x="0", y=y + 12, class_="row"),
        el("rect", x="0", y=y + 17, width=share(count.rate), height=14, rx=2,
           class_=f"fill {colour}", data_tip=f"{text}: {percent(count.rate, 2)}%, {interval}"),
        el("line", x1=share(low), x2=share(high), y1=middle, y2=middle, class_="halo"),
        el("line", x1=share(low), x2=share(high), y1=middle, y2=middle, class_="whisker"),
        el("line", x1=share(low), x2=share(low), y1=middle - 4, y2=middle + 4, class_="whisker"),
        el("line", x1=share(high), x2=share(high), y1=middle - 4, y2=middle + 4, class_="whisker"),
        el("text", percent(count.rate), x=share(max(high, count.rate)), dx=7, y=middle + 4,
           class_="value"),
    ]  # fmt: skip
