"""Errors by speaking rate: the utterances of a split in quarters, fastest first.

    python tests/benchmarks/speaking_rate.py --out exp/table teacher:ctc small-plain small-fs-kd

The rows are those of tests/benchmarks/distillation.py in the folder `--out`, all their seeds, each
decoded as named behind the colon (beam10 where nothing is). CTC needs an encoder frame for a token,
and one more between equal neighbours, so that fast speech is hard where tokens are short.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kdpipe.features.prepared import PreparedSplit
from kdpipe.models.lengths import subsampled_lengths

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.benchmarks.distillation_table import Decodes

QUARTERS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="+", metavar="ROW[:SEARCH]")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--unit", choices=["word", "char"], default="word")
    arguments = parser.parse_args()
    found = Decodes(arguments.out, arguments.split, "beam10")
    quarters = by_rate(found.data.split(arguments.split))
    ends = [max(ids.values()) for ids in quarters]
    print("| row | all |", *(f"to {end:.1f} |" for end in ends[:-1]), "more |")
    print("|---" * (QUARTERS + 2) + "|")
    for row in arguments.rows:
        name, _, search = row.partition(":")
        every = {identifier for ids in quarters for identifier in ids}
        parts = [every, *map(set, quarters)]
        shown = [f"{100 * rate(found, name, search, p, arguments):.1f}" for p in parts]
        print(f"| {row} | {' | '.join(shown)} |")


def by_rate(split: PreparedSplit) -> list[dict[str, float]]:
    """Encoder frames a character of every utterance, in quarters, the fewest frames first."""
    rates = {
        each.id: subsampled_lengths(each.num_frames) / len(each.text)
        for each in split.utterances
        if each.text
    }
    order: Sequence[str] = sorted(rates, key=lambda identifier: rates[identifier])
    return [
        {order[place]: rates[order[place]] for place in part}
        for part in np.array_split(np.arange(len(order)), QUARTERS)
    ]


def rate(
    found: Decodes, row: str, search: str, ids: set[str], arguments: argparse.Namespace
) -> float:
    """Errors of all seeds on the utterances `ids` over their reference units."""
    errors = total = 0
    if not found.models(row):
        raise SystemExit(f"{arguments.out}: no complete decodes of {row}; `run` its row first")
    for model in found.models(row):
        each = found.errors(model.name, arguments.split, search or found.search, arguments.unit)
        chosen = [place for place, name in enumerate(each.ids) if name in ids]
        errors += int(each.errors[chosen].sum())
        total += int(each.reference[chosen].sum())
    return errors / total


if __name__ == "__main__":
    main()
