"""The table of docs/results/distillation.md from a folder of models and decodes.

Rates are means over seeds, intervals are of all seeds' utterances resampled together. A step's p
is the paired bootstrap's on the same utterances, errors summed over the seeds that both rows have.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdpipe.checkpoint import read_card
from kdpipe.features.prepared import PreparedData
from kdpipe.files import read_jsonl
from kdpipe.models import build_model, count_parameters
from kdpipe.scoring import UtteranceErrors, align_pairs, compare_systems, rate_interval

__all__ = ["Decodes", "write_table"]

MAIN_ROWS = (
    "teacher", "same-plain", "same-f-kd", "same-fs-kd", "small-plain", "small-f-kd", "small-fs-kd",
)  # fmt: skip
STEPS = (
    ("same-plain", "same-f-kd"), ("same-f-kd", "same-fs-kd"), ("same-plain", "same-fs-kd"),
    ("same-plain", "same-release"), ("same-fs-kd", "same-release"),
    ("small-plain", "release"), ("small-f-kd", "release"), ("release", "release-dropout-0.1"),
    ("small-plain", "small-f-kd"), ("small-f-kd", "small-fs-kd"), ("small-plain", "small-fs-kd"),
    ("plain-20-epochs", "f-kd-20-epochs"), ("f-kd-20-epochs", "fs-kd-20-epochs"),
    ("plain-20-epochs", "fs-kd-20-epochs"),
    ("plain-20-epochs", "small-plain"), ("fs-kd-20-epochs", "small-fs-kd"),
    ("small-plain", "fs-kd-20-epochs"),
    ("plain-4e-3", "plain-20-epochs"), ("plain-20-epochs", "plain-16e-3"),
    ("plain-20-epochs", "plain-dropout-0"), ("plain-dropout-0", "fs-kd-20-epochs"),
    ("plain-20-epochs", "plain-dropout-0.2"),
    ("plain-dropout-0", "plain-dropout-0-40-epochs"), ("plain-dropout-0-40-epochs", "small-plain"),
    ("small-plain", "30-epochs-teacher"), ("small-fs-kd", "30-epochs-teacher"),
    ("small-plain", "ctc-0.7-teacher"), ("small-fs-kd", "ctc-0.7-teacher"),
    ("small-plain", "same-plain"),
    ("small-plain", "60-epochs-teacher"), ("plain-2e-3", "small-fs-kd"),
    ("small-fs-kd", "dropout-0.3-teacher"), ("plain-kernel-15", "small-plain"),
    ("kernel-15", "small-fs-kd"), ("plain-kernel-15", "kernel-15"),
    ("kernel-15-teacher", "small-fs-kd"),
    ("small-fs-kd", "mean-teacher"),
    ("dropout-0.1", "fs-kd-20-epochs"), ("temperature-1", "fs-kd-20-epochs"),
    ("unit-teacher-temperature-1", "dropout-0.1"), ("paper-teacher", "dropout-0.1"),
    ("paper-teacher", "paper-teacher-low-floor"), ("dropout-0.1", "low-floor"),
    ("short-plain", "short-f-kd"), ("short-f-kd", "short-fs-kd"), ("short-plain", "short-fs-kd"),
    ("tiny-plain", "tiny-fs-kd"), ("tiny-plain-dropout-0", "tiny-fs-kd"),
    ("half-plain", "half-fs-kd"), ("half-fs-kd", "plain-20-epochs"),
    *(("short-fs-kd", row) for row in (
        "encoder-only", "decoder-only", "nbest-1", "short-temperature-1", "short-temperature-4",
        "short-low-floor", "top-1", "top-4", "top-16", "one-masking",
        "short-dropout-0.1", "scale-unit", "online",
    )),
    *(("short-temperature-1", row) for row in ("tail-drop", "tail-renormalise")),
)  # fmt: skip


def write_table(found: Decodes, path: Path, searches: Sequence[str]) -> str:
    """Write the rows as JSON, beside it all searches and steps; returns the tables as Markdown.

    Rows that an earlier file has and this folder has not, stay: a folder need not hold all runs.
    """
    further = path.with_name(f"{path.stem}-searches.json")
    names = found.rows()
    rows = [row_of(found, name, found.search) for name in names]
    rows = with_earlier(rows, earlier(path, []), names)
    before = earlier(further, {"searches": [], "steps": []})
    every = [row_of(found, name, search) for name, search in found.decoded(searches)]
    every = with_earlier(every, before["searches"], names)
    steps = [step for pair in STEPS for step in compare(found, *pair)]
    kept = [s for s in before["steps"] if s["from"] not in names and s["to"] not in names]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n")
    further.write_text(json.dumps({"searches": every, "steps": kept + steps}, indent=1) + "\n")
    return "\n\n".join([markdown(rows), markdown(every), steps_markdown(kept + steps)])


def earlier(path: Path, nothing: Any) -> Any:
    """What an earlier table wrote to `path`."""
    return json.loads(path.read_text()) if path.exists() else nothing


def with_earlier(
    rows: list[dict[str, Any]], before: list[dict[str, Any]], names: Sequence[str]
) -> list[dict[str, Any]]:
    """`rows` and those from before that are not of `names`; the rows of Table 1 first."""
    places = {name: place for place, name in enumerate(MAIN_ROWS)}
    every = rows + [row for row in before if row["name"] not in names]
    return sorted(every, key=lambda row: places.get(row["name"], len(places)))


class Decodes:
    """What is decoded under a folder: names like small-plain-s0-test-beam10.

    `test` is the split that stands as `test` in all tables, `search` the one of rows and steps.
    """

    def __init__(self, out: Path, test: str, search: str) -> None:
        self.out, self.search = out, search
        self.splits = {"dev": "dev", "test": test}
        self.data = PreparedData.open(out / "data")
        self.references = {
            split: {u.id: u.text for u in self.data.split(name).utterances if u.text}
            for split, name in self.splits.items()
        }

    def models(self, row: str) -> list[Path]:
        """The row's models, a teacher or by seed, that are decoded in the main search."""
        names = [row, *(f"{row}-s{seed}" for seed in range(10))]
        return [self.out / name for name in names if self.folder(name, "test").is_dir()]

    def folder(self, name: str, split: str, search: str | None = None) -> Path:
        return self.out / "decode" / f"{name}-{self.splits[split]}-{search or self.search}"

    def rows(self) -> list[str]:
        """Names of the rows that have a decoded model: the main ones first."""
        seen = {p.name.rsplit("-s", 1)[0] for p in self.out.iterdir() if p.is_dir()}
        names = [*MAIN_ROWS, *sorted(seen - set(MAIN_ROWS))]
        return [name for name in names if self.models(name)]

    def decoded(self, searches: Sequence[str]) -> list[tuple[str, str]]:
        """The rows with each of the searches that decoded them."""
        return [
            (row, search)
            for row in self.rows()
            for search in searches
            if self.folder(self.models(row)[0].name, "test", search).is_dir()
        ]

    def errors(self, name: str, split: str, search: str, unit: Any) -> UtteranceErrors:
        hypotheses = {
            str(line["id"]): str(line["text"])
            for line in read_jsonl(self.folder(name, split, search) / "hyp.jsonl")
        }
        return align_pairs(self.references[split], hypotheses, unit)


def row_of(found: Decodes, row: str, search: str) -> dict[str, Any]:
    models = found.models(row)
    scores = [
        json.loads((found.folder(model.name, "test", search) / "score.json").read_text())
        for model in models
    ]
    sizes = read_card(models[0]).sizes
    return {
        "name": row,
        "search": search,
        "params": count_parameters(build_model(sizes)),
        "taps": sizes.kernel,
        "seeds": len(models),
        "train_seconds": round(float(np.mean([train_seconds(model) for model in models]))),
        "rtf": float(np.mean([score["rtf"] for score in scores])),
        **{split: rates(found, models, split, search) for split in ("dev", "test")},
    }


def train_seconds(model: Path) -> float:
    """Seconds of updates, wall time."""
    lines: Iterable[Any] = read_jsonl(model / "train.jsonl")
    return sum(float(line["seconds"]) for line in lines if line["type"] == "epoch")


def rates(found: Decodes, models: Sequence[Path], split: str, search: str) -> dict[str, Any]:
    answer = {}
    for name, unit in (("wer", "word"), ("cer", "char")):
        each = [found.errors(model.name, split, search, unit) for model in models]
        per_seed = [float(e.errors.sum() / e.reference.sum()) for e in each]
        total = sum(e.errors for e in each)
        reference = sum(e.reference for e in each)
        answer[name] = {
            "rate": float(np.mean(per_seed)),
            "substitutions": float(np.mean([e.substitutions.sum() for e in each])),
            "deletions": float(np.mean([e.deletions.sum() for e in each])),
            "insertions": float(np.mean([e.insertions.sum() for e in each])),
            "reference": int(each[0].reference.sum()),
            "ci95": list(rate_interval(np.asarray(total), np.asarray(reference))),
            "per_seed": per_seed,
        }
    return answer


def compare(found: Decodes, first: str, second: str) -> list[dict[str, Any]]:
    """Two rows by paired bootstrap on test, over the seeds that both have."""
    seeds = [
        (found.out / f"{first}-s{s}", found.out / f"{second}-s{s}")
        for s in range(10)
        if {f"{first}-s{s}"} <= {m.name for m in found.models(first)}
        and {f"{second}-s{s}"} <= {m.name for m in found.models(second)}
    ]
    answers = []
    for unit in ("word", "char") if seeds else ():
        pairs = [
            [found.errors(model.name, "test", found.search, unit) for model in pair]
            for pair in seeds
        ]
        one, two = (sum(pair[i].errors for pair in pairs) for i in (0, 1))
        reference = sum(pair[0].reference for pair in pairs)
        result = compare_systems(np.asarray(one), np.asarray(two), np.asarray(reference))
        answers.append(
            {
                "from": first, "to": second, "unit": unit, "seeds": len(seeds),
                "relative": float(1 - np.sum(two) / np.sum(one)),
                "difference": result.difference, "ci95": list(result.ci95), "p": result.p_value,
            }
        )  # fmt: skip
    return answers


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """CER / WER of dev and test, the interval and I+D of test; taps are the convolution's."""
    head = (
        "| row | search | parameters | taps | seeds | dev CER / WER % | test CER / WER % |"
        " test WER 95% | test I+D, CER / WER % | RTF | training s |\n" + "|---" * 11 + "|"
    )
    return "\n".join([head, *(line(row) for row in rows)])


def line(row: dict[str, Any]) -> str:
    dev, test = row["dev"], row["test"]
    low, high = test["wer"]["ci95"]
    return (
        f"| {row['name']} | {row['search']} | {row['params'] / 1e6:.2f} M | {row['taps']} |"
        f" {row['seeds']} |"
        f" {both(dev)} | {both(test)} | {100 * low:.1f} - {100 * high:.1f} |"
        f" {share(test['cer'])} / {share(test['wer'])} | {row['rtf']:.4f} |"
        f" {row['train_seconds']} |"
    )


def both(rates: dict[str, Any]) -> str:
    """Means of CER and WER, and from the best seed to the worst where there are several."""
    means = f"{100 * rates['cer']['rate']:.1f} / {100 * rates['wer']['rate']:.1f}"
    if len(rates["wer"]["per_seed"]) == 1:
        return means
    spread = [
        f"{100 * min(each):.1f}-{100 * max(each):.1f}"
        for each in (rates[unit]["per_seed"] for unit in ("cer", "wer"))
    ]
    return f"{means} ({' / '.join(spread)})"


def share(counts: dict[str, Any]) -> str:
    return f"{100 * (counts['insertions'] + counts['deletions']) / counts['reference']:.1f}"


def steps_markdown(steps: Sequence[dict[str, Any]]) -> str:
    head = "| step | unit | seeds | errors less by | p |\n|---|---|---|---|---|"
    lines = [
        f"| {s['from']} to {s['to']} | {s['unit']} | {s['seeds']} | {100 * s['relative']:.1f}% |"
        f" {s['p']:.4f} |"
        for s in steps
    ]
    return "\n".join([head, *lines])
