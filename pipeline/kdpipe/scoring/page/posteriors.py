"""Teacher beside student: confidence over many frames, posteriors of a few utterances."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from kdpipe.scoring.page.markup import Html, el, join, spoken
from kdpipe.scoring.page.material import (
    FrameAgreement,
    Material,
    PosteriorPicture,
    PosteriorRow,
    Section,
)
from kdpipe.scoring.page.names import colours, legend, model_order, percent
from kdpipe.scoring.page.plot import (
    Axis,
    Panel,
    end_names,
    label,
    line_mark,
    linear_axis,
    polyline,
    rule,
    shorten,
    svg,
)

__all__ = ["confidence_section", "pictures_section"]

NEEDS_STUDENT = (
    "It needs a teacher store, the data it was dumped from and a student that fits both. Add them"
    " to the runs (`--data DATA` for the data)."
)
WIDTH, HEIGHT = 340, 232
LEFT, RIGHT, TOP, BOTTOM = 40, 84, 26, 36
WIDTH_NAMED = 9
CELL, ROW_HEIGHT = 9.0, 13.0
GUTTER, HEAD = 62.0, 38.0
LEVELS = 16
FAINTEST = 0.02
TEXT_WIDTH = 7.4
TICK_SECONDS = 0.5


def confidence_section(material: Material) -> Section:
    """How sure teacher and student are of the same frames, and how often they agree."""
    title = "Teacher against student confidence"
    if not material.agreements:
        return Section("confidence", title, missing=NEEDS_STUDENT)
    lead = (
        "CTC posteriors of the same encoder frames: the teacher's as stored, the student's"
        " computed now, without augmentation. Spoken frames are those where the teacher's best"
        " class is not blank. The frames are of the store's own split, which both may have been"
        " trained on."
    )
    chosen = colours(material.models)
    parts = []
    order = [model.name for model in model_order(material.models)]
    for store, group in groupby(material.agreements, key=lambda found: found.store):
        found = sorted(group, key=lambda one: order.index(one.student))
        charts = [_histogram(found, chosen), _reliability(found, chosen)]
        parts += [el("h3", f"Against the store {store}"), _table(found),
                  el("div", *charts, class_="grid two compact")]  # fmt: skip
    shown = {found.student for found in material.agreements}
    models = [m for m in material.models if m.name in shown or m.kind == "ar"]
    return Section("confidence", title, lead, join([legend(models, chosen), *parts]))


def _table(found: Sequence[FrameAgreement]) -> Html:
    head = ("student", "KL(teacher \u2016 student), nats a frame", "same best class, all frames",
            "same best class, spoken frames", "frames", "spoken")  # fmt: skip
    header = [el("th", name, scope="col", class_=None if i == 0 else "n")
              for i, name in enumerate(head)]  # fmt: skip
    rows = [
        el(
            "tr", el("th", one.student, scope="row"), el("td", f"{one.kl:.3f}", class_="n"),
            el("td", f"{percent(one.same)}%", class_="n"),
            el("td", f"{percent(one.same_spoken)}%", class_="n"),
            el("td", f"{one.frames:,}", class_="n"), el("td", f"{one.spoken:,}", class_="n"),
        )
        for one in found
    ]  # fmt: skip
    note = f"{found[0].utterances} utterances, spread evenly over the store."
    table = el("table", el("thead", el("tr", *header)), el("tbody", *rows))
    return join([el("div", table, class_="scroll"), el("p", note, class_="note")])


def _histogram(found: Sequence[FrameAgreement], chosen: dict[str, str]) -> Html:
    """Steps of the share of spoken frames by their highest posterior."""
    curves = [("teacher", found[0].teacher_counts, "t0")]
    curves += [(one.student, one.student_counts, chosen.get(one.student, "k0")) for one in found]
    shares = [(name, _shares(counts), colour) for name, counts, colour in curves]
    bottom = HEIGHT - BOTTOM
    top = linear_axis((v for _, values, _ in shares for v in values), bottom, TOP)
    panel = Panel(WIDTH, HEIGHT, Axis(0.0, 1.0, LEFT, WIDTH - RIGHT), top)
    parts = [
        panel.frame("spoken frames, %", "highest posterior of the frame", lambda v: f"{v:g}",
                    lambda v: f"{v:g}")
    ]  # fmt: skip
    for name, values, colour in shares:
        width = 1.0 / len(values)
        steps = [(x, v) for i, v in enumerate(values) for x in (i * width, (i + 1) * width)]
        pixels = [(panel.x.at(x), panel.y.at(v)) for x, v in steps]
        tip = f"{name}: {values[-1]:.1f}% of spoken frames above {1 - width:.2f}"
        dot = el("circle", cx=pixels[-1][0], cy=pixels[-1][1], r=2.6, class_="dot", data_tip=tip)
        parts.append(el("g", polyline(pixels, "line"), dot, class_=colour))
    ends = [(1.0, values[-1], f"{shorten(name, WIDTH_NAMED)} {values[-1]:.0f}", colour)
            for name, values, colour in shares]  # fmt: skip
    parts += end_names(panel, ends)
    return svg(WIDTH, HEIGHT, "Histogram of the highest posterior of spoken frames", *parts)


def _shares(counts: Sequence[int]) -> list[float]:
    total = max(sum(counts), 1)
    return [100 * count / total for count in counts]


def _reliability(found: Sequence[FrameAgreement], chosen: dict[str, str]) -> Html:
    """How often the student's best class is the teacher's, by how sure the student is."""
    bottom = HEIGHT - BOTTOM
    panel = Panel(WIDTH, HEIGHT, Axis(0.0, 1.0, LEFT, WIDTH - RIGHT), Axis(0.0, 1.0, bottom, TOP))
    parts = [
        panel.frame("share of frames with the teacher's best class",
                    "student's highest posterior, all frames", lambda v: f"{v:g}",
                    lambda v: f"{v:g}"),
        rule(panel.x.at(0), panel.y.at(0), panel.x.at(1), panel.y.at(1), "frontier"),
        label(panel.x.at(0.08), panel.y.at(0.05), "diagonal: agrees as often as sure", "tick over"),
    ]  # fmt: skip
    for one in found:
        points = [(mean, share) for mean, share, _ in one.reliability]
        if points:
            colour = chosen.get(one.student, "k0")
            parts.append(line_mark(panel, points, colour, f"{one.student}: {one.frames} frames"))
            parts += [
                el("circle", cx=panel.x.at(mean), cy=panel.y.at(share), r=2.6,
                   class_=f"fill {colour}",
                   data_tip=f"{one.student}: posterior {mean:.2f}, agrees {percent(share)}%"
                   f" ({count} frames)")
                for mean, share, count in one.reliability
            ]  # fmt: skip
    parts += end_names(panel, [
        (*one.reliability[-1][:2], shorten(one.student, WIDTH_NAMED + 3),
         chosen.get(one.student, "k0"))
        for one in found
        if one.reliability
    ])  # fmt: skip
    return svg(WIDTH, HEIGHT, "Agreement with the teacher by the student's confidence", *parts)


def pictures_section(material: Material) -> Section:
    """Heat maps of a few utterances."""
    title = "CTC posteriors, frame by frame"
    if not material.pictures:
        return Section("posteriors", title, missing=NEEDS_STUDENT)
    lead = (
        "The stronger the colour, the likelier; one column is an encoder frame. Only classes that"
        " exceed 0.2 somewhere are drawn, in the order in which the teacher reaches them;"
        " blank is grey."
        " A student that learned from the teacher's frames peaks where the teacher does."
    )
    chosen = colours(material.models)
    body = join(_picture(picture, chosen) for picture in material.pictures)
    return Section("posteriors", title, lead, body)


def _picture(picture: PosteriorPicture, chosen: dict[str, str]) -> Html:
    head = [
        el("h3", el("code", picture.utterance), el("span", f" {picture.why}", class_="muted")),
        el("p", el("span", "reference ", class_="muted"), spoken(picture.reference), class_="said"),
    ]
    frames = len(picture.rows[0].posteriors)
    block = HEAD + ROW_HEIGHT * len(picture.classes)
    width = max(GUTTER + CELL * frames + 8, TEXT_WIDTH * max(map(_text_length, picture.rows)))
    parts = []
    for i, row in enumerate(picture.rows):
        parts.append(_heat(picture, row, i * block, chosen.get(row.model, "t0")))
    height = block * len(picture.rows) + 30
    parts.append(_time_axis(picture, frames, block * len(picture.rows)))
    name = f"Heat maps of the CTC posteriors of {picture.utterance}"
    drawn = el(
        "svg", *parts, class_="heat", width=width, height=height, role="img", aria_label=name,
    )  # fmt: skip
    return el("div", *head, el("div", drawn, class_="scroll"), class_="picture")


def _text_length(row: PosteriorRow) -> int:
    return len(f"{row.model}  {row.origin}: {row.text}") + 2


def _heat(picture: PosteriorPicture, row: PosteriorRow, top: float, colour: str) -> Html:
    """One model's panel: its name and text, then a row of cells a class."""
    frames, classes = row.posteriors.shape
    first = top + HEAD - 10
    parts = [
        el("text", el("tspan", row.model, class_="strong"), f"  {row.origin}: ",
           el("tspan", row.text or "(nothing)", class_="strong"), x=0.0, y=top + 18, class_="row"),
        el("rect", x=GUTTER, y=first, width=CELL * frames, height=ROW_HEIGHT * classes,
           class_="bed"),
    ]  # fmt: skip
    for i, piece in enumerate(picture.classes):
        y = first + i * ROW_HEIGHT
        parts.append(label(GUTTER - 6, y + 10, piece, "piece", "end"))
        shade = "fill blank" if piece == "blank" else f"fill {colour}"
        parts.append(el("g", *_cells(row.posteriors[:, i], y), class_=shade))
    return join(parts)


def _cells(column: NDArray[np.float64], y: float) -> list[Html]:
    """A rectangle for every run of frames of one shade; the faintest are left out."""
    shades = np.ceil(column * LEVELS).astype(int)
    shades[column < FAINTEST] = 0
    edges = np.flatnonzero(np.diff(shades)) + 1
    starts = [0, *edges.tolist()]
    ends = [*edges.tolist(), len(shades)]
    return [
        el("rect", x=GUTTER + CELL * start, y=y + 0.5, width=CELL * (end - start),
           height=ROW_HEIGHT - 1, fill_opacity=f"{shades[start] / LEVELS:.3f}")
        for start, end in zip(starts, ends, strict=True)
        if shades[start]
    ]  # fmt: skip


def _time_axis(picture: PosteriorPicture, frames: int, top: float) -> Html:
    parts = []
    seconds = frames * picture.frame_seconds
    for i in range(int(seconds / TICK_SECONDS) + 1):
        x = GUTTER + CELL * i * TICK_SECONDS / picture.frame_seconds
        parts.append(rule(x, top - 10, x, top - 5, "axis"))
        parts.append(label(x, top + 8, f"{i * TICK_SECONDS:g}", "tick", "middle"))
    return join([*parts, label(GUTTER, top + 24, "seconds", "tick")])
