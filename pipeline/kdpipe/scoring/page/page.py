"""One self-contained page: its parts in order, its style and script, nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from kdpipe.scoring.page.curves import curves_section
from kdpipe.scoring.page.lengths import lengths_section
from kdpipe.scoring.page.markup import Html, el, join
from kdpipe.scoring.page.material import DecodeRun, Material, Section
from kdpipe.scoring.page.names import percent, search_labels, splits
from kdpipe.scoring.page.posteriors import confidence_section, pictures_section
from kdpipe.scoring.page.rates import bars_section, comparisons, summary_section
from kdpipe.scoring.page.stores import stores_section, tile
from kdpipe.scoring.page.tradeoff import tradeoff_section
from kdpipe.scoring.page.worst import worst_section

__all__ = ["page_sections", "render_page"]

SECTIONS = (
    summary_section,
    bars_section,
    curves_section,
    tradeoff_section,
    lengths_section,
    worst_section,
    stores_section,
    confidence_section,
    pictures_section,
)


def page_sections(material: Material) -> list[Section]:
    """Every part of the page, those without material too."""
    return [make(material) for make in SECTIONS]


def render_page(material: Material) -> str:
    """The whole page as HTML; equal material gives equal bytes.

    It asks nothing of the network: a policy in its head forbids it, and allows no script and
    no style but those whose digests it names.
    """
    sections = page_sections(material)
    style, script = _resource("page.css"), _resource("page.js")
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}';"
        " base-uri 'none'; form-action 'none'"
    )
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", f"{material.title} \u2013 kdpipe report"),
        el("style", style),
        el("script", script),
    )
    shown = [section for section in sections if section.body is not None]
    missing = [section for section in sections if section.body is None]
    main = el("main", *(_section(section) for section in shown), _missing(missing, material))
    body = el("body", _header(material, shown), main, _footer())
    return f"<!DOCTYPE html>\n{el('html', head, body, lang='en')}\n"


def _resource(name: str) -> Html:
    """A file of this package, as markup."""
    return Html(files("kdpipe.scoring.page").joinpath(name).read_text(encoding="utf-8"))


def _digest(content: str) -> str:
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def _header(material: Material, shown: list[Section]) -> Html:
    links = [el("a", section.title, href=f"#{section.name}") for section in shown]
    return el(
        "header",
        el("p", "kdpipe report", class_="kicker"),
        el("h1", material.title),
        el("p", _extent(material), class_="lead"),
        el("div", *_headlines(material), class_="tiles"),
        el("nav", *links, aria_label="Sections"),
    )


def _extent(material: Material) -> str:
    counts = (
        (len(material.models), "model"),
        (len(material.decodes), "decode output"),
        (len(material.stores), "teacher store"),
    )
    text = ", ".join(f"{n} {name}{'s' * (n != 1)}" for n, name in counts if n)
    spoken = [
        f"{name} {count} utterances ({seconds / 60:.0f} min)"
        for data in material.data
        for name, (count, seconds) in data.splits.items()
    ]
    tokens = "; ".join(data.tokens for data in material.data)
    return f"{text or 'no runs'}." + (f" Data: {', '.join(spoken)}; {tokens}." if spoken else "")


def _headlines(material: Material) -> list[Html]:
    """The figures that most people look for, of the first split."""
    names = splits([d for d in material.decodes if d.report.wer is not None])
    if not names:
        return []
    return [*_best_tiles(material, names[0]), *_gain_tiles(material, names[0])]


def _best_tiles(material: Material, split: str) -> list[Html]:
    """The best output of the teachers and of the students, and how much faster the latter is."""
    kinds = {model.name: model.kind for model in material.models}
    decodes = [d for d in material.decodes if d.report.split == split and _rate(d) is not None]
    labels = dict(zip((d.name for d in decodes), search_labels(decodes), strict=True))
    best: dict[bool, DecodeRun] = {}
    for decode in sorted(decodes, key=lambda d: (_rate(d) or 0.0, d.report.rtf, d.name)):
        best.setdefault(kinds.get(decode.model) == "ar", decode)
    tiles = [
        tile(
            f"{percent(_rate(decode) or 0.0)}%",
            f"{decode.rate_name} on {split}: {decode.model}, {labels[decode.name]}",
        )
        for _, decode in sorted(best.items(), reverse=True)
    ]
    if len(best) == 2 and best[False].report.rtf > 0:
        ratio = best[True].report.rtf / best[False].report.rtf
        names = [f"{best[k].model} {best[k].report.rtf:.4f}" for k in (True, False)]
        tiles.append(tile(f"{ratio:.1f}\u00d7", f"as fast, by RTF: {', '.join(names)}"))
    return tiles


def _gain_tiles(material: Material, split: str) -> list[Html]:
    """The most accurate distilled student beside the most accurate plain one of its search."""
    found = [(pair, c) for pair, c in comparisons(material, split) if _rate(pair[0])]
    if not found:
        return []
    (plain, other, search), comparison = min(
        found, key=lambda item: (_rate(item[0][1]) or 0.0, _rate(item[0][0]) or 0.0)
    )
    relative = (_rate(other) or 0.0) / (_rate(plain) or 1.0) - 1
    figure = f"{100 * relative:+.0f}%".replace("-", "\u2212")
    chance = "p < 0.001" if comparison.p_value < 0.001 else f"p = {comparison.p_value:.3f}"
    text = f"{plain.rate_name} of {other.model} against {plain.model}, both {search} ({chance})"
    return [tile(figure, text)]


def _rate(decode: DecodeRun) -> float | None:
    return None if decode.counts is None else decode.counts.rate


def _section(section: Section) -> Html:
    return el(
        "section",
        el("h2", section.title),
        el("p", *_marked(section.lead), class_="lead"),
        Html(section.body or ""),
        id=section.name,
        class_="part",
    )


def _missing(missing: list[Section], material: Material) -> Html:
    """What the page cannot show, and how to get it; nothing where all is there."""
    items = [el("li", el("b", f"{s.title}. "), *_marked(s.missing)) for s in missing]
    items += [el("li", *_marked(note)) for note in material.notes]
    if not items:
        return Html("")
    return el("section", el("h2", "Not on this page"), el("ul", *items), id="missing",
              class_="part")  # fmt: skip


def _marked(text: str) -> list[Html | str]:
    """Text with its `commands` as code."""
    return [el("code", part) if i % 2 else part for i, part in enumerate(text.split("`"))]


def _footer() -> Html:
    return el("footer", join([
        "Written by ", el("code", "kdpipe report"), " from the folders named to it; it holds"
        " everything it shows and loads nothing.",
    ]))  # fmt: skip
