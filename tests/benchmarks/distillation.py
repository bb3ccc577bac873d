"""The rows of docs/results/distillation.md, each from ordinary kdpipe commands.

    python tests/benchmarks/distillation.py run --corpus CORPUS --out exp/table --rows small-plain
    python tests/benchmarks/distillation.py table --out exp/table --json distillation.json

`run` prints every command before it runs it. What is complete is not run again, and what was
interrupted resumes, so several `run`s with different rows may work on one folder as a queue.
`table` reads the score.json files and compares neighbouring rows by paired bootstrap.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from kdpipe.corpus.manifest import read_manifest, write_manifest

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.benchmarks.distillation_table import write_table

RECIPE = "an4"
SPLITS = ("dev", "test")
SAME = (
    "student.model.dim=128", "student.model.inner=512", "student.training.learning_rate=2e-3",
    "student.stages.0.epochs=12", "student.stages.1.epochs=3",
)  # fmt: skip
"""The student of the teacher's size; the recipe itself has the small one."""
NO_SEQUENCE = ("distillation.sequence=false",)


@dataclass(frozen=True)
class Row:
    """One student: the settings changed from the recipe, the store it learns from, the data.

    `store` "online" is the teacher itself, run on every batch.
    """

    overrides: tuple[str, ...] = ()
    store: str | None = "train"
    data: str = "data"


ROWS = {
    "same-plain": Row(SAME, None),
    "same-f-kd": Row((*SAME, *NO_SEQUENCE)),
    "same-fs-kd": Row(SAME),
    "small-plain": Row((), None),
    "small-f-kd": Row(NO_SEQUENCE),
    "small-fs-kd": Row(),
    "encoder-only": Row(("student.stages.0.gamma_decoder=0", "student.stages.1.gamma_decoder=0")),
    "decoder-only": Row(("student.stages.0.gamma_encoder=0", "student.stages.1.gamma_encoder=0")),
    "nbest-1": Row(("distillation.nbest=1",)),
    "tail-drop": Row(("distillation.tail=drop",)),
    "tail-renormalise": Row(("distillation.tail=renormalise",)),
    "top-1": Row((), "top-1"),
    "top-4": Row((), "top-4"),
    "top-16": Row((), "top-16"),
    "scale-paper": Row(("distillation.scale=paper",)),
    "one-masking": Row(("student.masks_per_utterance=1",)),
    "plain-lr-2e-3": Row(("student.training.learning_rate=2e-3",), None),
    "plain-lr-8e-3": Row(("student.training.learning_rate=8e-3",), None),
    "plain-longer": Row(("student.stages.0.epochs=36",), None),
    "online": Row((), "online"),
    "half-plain": Row((), None, "half"),
    "half-fs-kd": Row((), "train", "half"),
}
TABLE_1 = tuple(name for name in ROWS if name.startswith(("same-", "small-")))
"""These rows are decoded in every search; the others greedily and with the widest beam."""
STORES = {
    "train": (),
    "top-1": ("--top-k", "1"),
    "top-4": ("--top-k", "4"),
    "top-16": ("--top-k", "16"),
}
THRESHOLD = ("--mask-threshold", "0.5")
"""Chosen on dev. Small models on little speech are rarely 99% sure, as the paper's p_thr wants."""
SEARCHES = {
    "ctc": ("--mode", "ctc"),
    "beam1": ("--beam", "1", *THRESHOLD),
    "beam5": ("--beam", "5", *THRESHOLD),
    "beam10": ("--beam", "10", *THRESHOLD),
    "p99-beam1": ("--beam", "1", "--mask-threshold", "0.99"),
    "p99-beam10": ("--beam", "10", "--mask-threshold", "0.99"),
}
FEW_SEARCHES = {name: SEARCHES[name] for name in ("ctc", "beam10")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    run = actions.add_parser("run")
    run.add_argument("--corpus", type=Path, required=True)
    run.add_argument("--rows", nargs="+", choices=["teacher", *ROWS], required=True)
    run.add_argument("--seeds", nargs="+", type=int, default=[0])
    run.add_argument("--device", default="cpu")
    run.add_argument("--set", dest="overrides", nargs="+", default=[])
    table = actions.add_parser("table")
    table.add_argument("--json", type=Path, required=True)
    for each in (run, table):
        each.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.action == "table":
        print(write_table(arguments.out, arguments.json))
        return
    prepare(arguments.corpus, arguments.out)
    for row in arguments.rows:
        for seed in arguments.seeds if row != "teacher" else [0]:
            run_row(arguments, row, seed)


def prepare(corpus: Path, out: Path) -> None:
    """The data that every row shares: three speeds of the training speech, character tokens."""
    manifests = [f"--{split}={corpus}/{split}.jsonl" for split in ("train", *SPLITS)]
    if not (out / "data").exists():
        kdpipe("prepare", *manifests, "--speed", "0.9,1.0,1.1", "--out", out / "data")


def prepare_half(corpus: Path, out: Path) -> None:
    """Every second training utterance, with the tokens and features of the teacher."""
    half = out / "half-train.jsonl"
    write_manifest(half, read_manifest(corpus.resolve() / "train.jsonl")[::2])
    manifests = [f"--train={half}", *(f"--{split}={corpus}/{split}.jsonl" for split in SPLITS)]
    like = ("--like", out / "teacher", "--speed", "0.9,1.0,1.1")
    kdpipe("prepare", *manifests, *like, "--out", out / "half")


def run_row(arguments: argparse.Namespace, row: str, seed: int) -> None:
    """Train one model, and decode dev and test in every mode."""
    out, model = arguments.out, arguments.out / model_name(row, seed)
    overrides = list(arguments.overrides)
    folder = out / ("data" if row == "teacher" else ROWS[row].data)
    where = ["--data", folder, "--recipe", RECIPE, "--seed", str(seed)]
    where += ["--device", arguments.device]
    if row == "teacher":
        kdpipe("train-teacher", *where, "--out", model, *settings(overrides))
        searches = FEW_SEARCHES
    else:
        if not folder.exists():
            prepare_half(arguments.corpus, out)
        targets = dump(out, ROWS[row].store, arguments.device)
        every = [*ROWS[row].overrides, *overrides]
        kdpipe("train-student", *where, "--out", model, *targets, *settings(every))
        searches = SEARCHES if row in TABLE_1 else FEW_SEARCHES
    for split in SPLITS:
        for name, search in searches.items():
            kdpipe(
                "decode", "--model", model, "--data", out / "data", "--split", split,
                "--out", out / "decode" / f"{model.name}-{split}-{name}", *search,
            )  # fmt: skip


def model_name(row: str, seed: int) -> str:
    """The folder of one model."""
    return row if row == "teacher" else f"{row}-s{seed}"


def dump(out: Path, store: str | None, device: str) -> list[str | Path]:
    """The options that name the row's teacher; its store is dumped now if it is not there."""
    if store is None:
        return []
    if store == "online":
        return ["--online-teacher", out / "teacher"]
    path = out / f"{store}.zarr"
    kdpipe(
        "teacher-dump", "--data", out / "data", "--split", "train",
        "--teacher", out / "teacher", "--out", path, "--device", device, *STORES[store],
    )  # fmt: skip
    return ["--targets", path]


def settings(overrides: list[str]) -> list[str]:
    """The overrides as options."""
    return [word for override in overrides for word in ("--set", override)]


def kdpipe(*arguments: str | Path) -> None:
    """Run one command of the product, shown as a user would type it."""
    words = [str(argument) for argument in arguments]
    print("kdpipe", *words, flush=True)
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    program = [sys.executable, "-m", "kdpipe_cli.main"]
    subprocess.run([*program, *words], check=True, env=environment)


if __name__ == "__main__":
    main()
