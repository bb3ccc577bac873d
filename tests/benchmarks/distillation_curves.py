"""Dev error against training time, plain and distilled, as one SVG.

    python tests/benchmarks/distillation_curves.py --out docs/images/distillation.svg MODEL ...

The lines are greedy CTC on dev as train.jsonl has it after every epoch, over the time of the
updates so far. Models of one name but for the seed share a colour and, since other work may have
run beside one of them, the time of an epoch: the median of their wall times.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

from kdpipe.files import read_jsonl
from kdpipe.scoring.page.markup import Html, el
from kdpipe.scoring.page.plot import Axis, Panel, end_names, line_mark, linear_axis, svg

WIDTH, HEIGHT = 720, 330
LEFT, RIGHT, TOP, BOTTOM = 40, 130, 26, 40
COLOURS = ("#0072b2", "#c8540a", "#00866a", "#a8508a", "#2b3036", "#a17800")
ACROSS = "minutes of training, one of two busy cores"
STYLE = """
svg { background: #fbfaf8; font-family: -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
text { fill: #1d2126; font-size: 12px; } .title { font-weight: 600; }
.tick { fill: #5f6872; font-size: 11px; }
.name { fill: var(--c); font-size: 11px; font-weight: 600; }
.grid { stroke: #e4e3df; } .axis { stroke: #9aa0a6; }
.line { fill: none; stroke: var(--c); stroke-width: 1.6; } .dot { fill: var(--c); }
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rate", choices=["cer", "wer"], default="wer")
    parser.add_argument("--most", type=float, default=100.0, help="percent where the axis ends")
    arguments = parser.parse_args()
    lines = curves(arguments.models, arguments.rate)
    shown = {name: [p for p in points if p[1] <= arguments.most] for name, points in lines.items()}
    if above := [name for name, points in shown.items() if not points]:
        parser.error(f"--most {arguments.most:g}: every point of {', '.join(above)} lies above it")
    picture = draw(shown, arguments.rate, arguments.most)
    arguments.out.write_text(picture + "\n", encoding="utf-8")


def group_of(name: str) -> str:
    """The model's name without its seed."""
    return re.sub(r"-s\d+$", "", name)


def curves(models: Sequence[Path], rate: str) -> dict[str, list[tuple[float, float]]]:
    """(minutes of updates, percent) after every epoch, by model."""
    logs: dict[str, list[Any]] = {
        path.name: [r for r in read_jsonl(path / "train.jsonl") if r["type"] == "epoch"]
        for path in models
    }
    found = {}
    for name, records in logs.items():
        together = [log for other, log in logs.items() if group_of(other) == group_of(name)]
        seconds = [median(float(r["seconds"]) for r in each) for each in zip(*together)]  # noqa: B905
        minutes = (total / 60 for total in accumulate(seconds))
        found[name] = [
            (at, 100 * float(record[f"dev_{rate}"]))
            for at, record in zip(minutes, records, strict=False)
        ]
    return found


def draw(lines_of: dict[str, list[tuple[float, float]]], rate: str, most: float) -> Html:
    """One panel; the axis up ends at `most` percent, and no point lies above."""
    longest = max(points[-1][0] for points in lines_of.values())
    panel = Panel(
        WIDTH, HEIGHT, linear_axis([longest], LEFT, WIDTH - RIGHT),
        Axis(0.0, most, HEIGHT - BOTTOM, TOP),
    )  # fmt: skip
    groups = {name: group_of(name) for name in lines_of}
    order = list(dict.fromkeys(groups.values()))
    lines = [
        line_mark(panel, points, f"k{order.index(groups[name])}", f"{name} {points[-1][1]:.1f}")
        for name, points in lines_of.items()
    ]
    last = {groups[name]: points[-1] for name, points in lines_of.items()}
    ends = [(*last[g], g, f"k{i}") for i, g in enumerate(order)]
    colours = "".join(f".k{i} {{ --c: {colour}; }}\n" for i, colour in enumerate(COLOURS))
    title = f"dev {rate.upper()}, greedy CTC, %"
    picture = svg(
        WIDTH, HEIGHT, title, el("style", Html(STYLE + colours)),
        panel.frame(title, ACROSS, lambda v: f"{v:g}", lambda v: f"{v:g}"),
        *lines, *end_names(panel, ends),
    )  # fmt: skip
    return Html(picture.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


if __name__ == "__main__":
    main()
