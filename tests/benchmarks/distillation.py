"""The rows of docs/results/distillation.md, each from ordinary kdpipe commands.

    python tests/benchmarks/distillation.py run --corpus CORPUS --out exp/table --rows small-plain
    python tests/benchmarks/distillation.py table --out exp/table --json distillation.json

`run` prints every command before it runs it. What is complete is not run again, and what was
interrupted resumes, so several `run`s with different rows may work on one folder as a queue, and
one with `--jobs N` works on N of its models at a time: teachers first, then their stores, then the
students. On a machine with a GPU and N cores or more that is the whole table in one command
(`--device cuda --jobs 8`), whose seconds and RTF are those of models that share it.
Of several corpora training and development speech are joined, and the tests of all but the first
are splits named as the corpus's folder. `table` reads the decodes of a test split and compares
neighbouring rows by paired bootstrap.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kdpipe.corpus.manifest import read_manifest, write_manifest

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.benchmarks.distillation_table import Decodes, write_table

RECIPE = "an4"
SPLITS = ("dev", "test")
UNIT = "distillation.scale=unit"
"""Means per token and frame in place of the recipe's sums."""
TEACHERS = {
    "teacher": (),
    "teacher-paper": ("teacher.model.dropout=0.1",),
    "teacher-unit": ("teacher.model.dropout=0.1", "teacher.scale=unit"),
    "teacher-dropout-0.3": ("teacher.model.dropout=0.3", "teacher.training.epochs=36"),
    "teacher-kernel-15": ("teacher.model.kernel=15",),
    "teacher-60-epochs": ("teacher.model.dropout=0.3", "teacher.training.epochs=60"),
    "teacher-30-epochs": (
        "teacher.model.dropout=0.1",
        "teacher.training.epochs=30",
        "teacher.training.learning_rate=2e-3",
    ),
    "teacher-ctc-0.7": ("teacher.training.ctc_weight=0.7",),
}
"""The teachers, each with what it changes in the recipe. Most rows learn from the first."""
SAME = (
    "student.model.dim=128", "student.model.inner=512", "student.training.learning_rate=2e-3",
    "student.training.warmup_steps=600", "student.stages.0.epochs=27", "student.stages.1.epochs=3",
    "student.model.dropout=0.1",
)  # fmt: skip
"""The student of the teacher's size; the recipe itself has the small one."""
TWENTY = ("student.stages.0.epochs=16",)
"""Half the recipe's epochs, 16 + 4: in these the settings of the small student were tried."""
SHORT = (
    "student.training.warmup_steps=600", "student.stages.0.epochs=8", "student.stages.1.epochs=2",
)  # fmt: skip
"""A quarter of the recipe's epochs, for the ablations: each is compared with the rows short-*."""
DROPOUT = ("student.model.dropout=0.1",)
"""Of plain students, which are the better for it; the recipe's distilled ones have none."""
NO_SEQUENCE = ("distillation.sequence=false",)
RELEASE = ("student.stages.0.epochs=24", "student.stages.1.epochs=16", *NO_SEQUENCE)
"""24 epochs of frame-level distillation; then 16 with (almost) labels alone for the encoder."""
TINY = ("student.model.dim=32", "student.model.inner=64")
"""A student of a twentieth of the teacher's parameters."""


def both_stages(key: str, value: float) -> tuple[str, ...]:
    """One weight of Eq. 10 or 13, in both stages."""
    return tuple(f"student.stages.{stage}.{key}={value}" for stage in (0, 1))


@dataclass(frozen=True)
class Row:
    """One student: the settings changed from the recipe, the store it learns from, the data.

    `data` "half" is half the speech: all epochs of it are as many updates as rows of 20 make.
    `store` "online" is the teacher itself, run on every batch.
    """

    overrides: tuple[str, ...] = ()
    store: str | None = "train"
    data: str = "data"


ROWS = {
    "same-plain": Row(SAME, None),
    "same-f-kd": Row((*SAME, *NO_SEQUENCE)),
    "same-fs-kd": Row(SAME),
    "small-plain": Row(DROPOUT, None),
    "small-f-kd": Row(NO_SEQUENCE),
    "small-fs-kd": Row(),
    "plain-20-epochs": Row((*TWENTY, *DROPOUT), None),
    "f-kd-20-epochs": Row((*TWENTY, *NO_SEQUENCE)),
    "fs-kd-20-epochs": Row(TWENTY),
    "plain-unit": Row((*TWENTY, *DROPOUT, UNIT), None),
    "plain-4e-3": Row((*TWENTY, *DROPOUT, "student.training.learning_rate=4e-3"), None),
    "plain-4e-3-40-epochs": Row((*DROPOUT, "student.training.learning_rate=4e-3"), None),
    "plain-16e-3": Row((*TWENTY, *DROPOUT, "student.training.learning_rate=16e-3"), None),
    "plain-dropout-0": Row(TWENTY, None),
    "plain-dropout-0-40-epochs": Row((), None),
    "plain-dropout-0-warmup-2400": Row((*TWENTY, "student.training.warmup_steps=2400"), None),
    "plain-dropout-0.2": Row((*TWENTY, "student.model.dropout=0.2"), None),
    "dropout-0.1": Row((*TWENTY, *DROPOUT)),
    "temperature-1": Row((*TWENTY, "distillation.temperature=1")),
    "unit-teacher-temperature-1": Row((*TWENTY, *DROPOUT, "distillation.temperature=1"), "unit"),
    "same-release": Row(
        (
            *SAME,
            *NO_SEQUENCE,
            "student.stages.0.epochs=18",
            "student.stages.1.epochs=12",
            "student.stages.1.gamma_encoder=0",
        )
    ),
    "release": Row((*RELEASE, "student.stages.1.gamma_encoder=0")),
    "release-dropout-0.1": Row((*RELEASE, *DROPOUT, "student.stages.1.gamma_encoder=0")),
    "release-0.05": Row((*RELEASE, "student.stages.1.gamma_encoder=0.05")),
    "sequence-30": Row(("student.stages.0.epochs=10", "student.stages.1.epochs=30")),
    "plain-2e-3": Row((*DROPOUT, "student.training.learning_rate=2e-3"), None),
    "dropout-0.3-teacher": Row((), "dropout-0.3"),
    "60-epochs-teacher": Row((), "60-epochs"),
    "30-epochs-teacher": Row((), "30-epochs"),
    "ctc-0.7-teacher": Row((), "ctc-0.7"),
    "mean-teacher": Row((), "mean"),
    "plain-kernel-15": Row((*DROPOUT, "student.model.kernel=15"), None),
    "kernel-15": Row(("student.model.kernel=15",), "kernel-15"),
    "kernel-15-teacher": Row((), "kernel-15"),
    "low-floor": Row((*TWENTY, *DROPOUT), "low-floor"),
    "paper-teacher": Row((*TWENTY, *DROPOUT), "paper"),
    "paper-teacher-low-floor": Row((*TWENTY, *DROPOUT), "paper-low-floor"),
    "short-plain": Row((*SHORT, *DROPOUT), None),
    "short-f-kd": Row((*SHORT, *NO_SEQUENCE)),
    "short-fs-kd": Row(SHORT),
    "encoder-only": Row((*SHORT, *both_stages("gamma_decoder", 0))),
    "decoder-only": Row((*SHORT, *both_stages("gamma_encoder", 0))),
    "scale-unit": Row((*SHORT, UNIT)),
    "scale-unit-encoder-x4": Row((*SHORT, UNIT, *both_stages("gamma_encoder", 2.0))),
    "nbest-1": Row((*SHORT, "distillation.nbest=1")),
    "tail-drop": Row((*SHORT, "distillation.temperature=1", "distillation.tail=drop")),
    "tail-renormalise": Row(
        (*SHORT, "distillation.temperature=1", "distillation.tail=renormalise")
    ),
    "top-1": Row(SHORT, "top-1"),
    "top-4": Row(SHORT, "top-4"),
    "top-16": Row(SHORT, "top-16"),
    "short-low-floor": Row(SHORT, "low-floor"),
    "short-temperature-1": Row((*SHORT, "distillation.temperature=1")),
    "short-temperature-4": Row((*SHORT, "distillation.temperature=4")),
    "short-dropout-0.1": Row((*SHORT, *DROPOUT)),
    "one-masking": Row((*SHORT, "student.masks_per_utterance=1")),
    "online": Row(SHORT, "online"),
    "tiny-plain": Row((*TINY, *DROPOUT), None),
    "tiny-plain-dropout-0": Row(TINY, None),
    "tiny-fs-kd": Row(TINY),
    "half-plain": Row(DROPOUT, None, "half"),
    "half-fs-kd": Row((), "train", "half"),
}
TABLE_1 = tuple(name for name in ROWS if name.startswith(("same-", "small-")))
"""These rows are decoded in every search; the others greedily and with the widest beam."""
STORES = {
    "train": ("teacher",),
    "unit": ("teacher-unit",),
    "paper": ("teacher-paper",),
    "dropout-0.3": ("teacher-dropout-0.3",),
    "kernel-15": ("teacher-kernel-15",),
    "60-epochs": ("teacher-60-epochs",),
    "30-epochs": ("teacher-30-epochs",),
    "ctc-0.7": ("teacher-ctc-0.7",),
    "paper-low-floor": ("teacher-paper", "--codec", "fp16", "--min-prob", "1e-6"),
    "low-floor": ("teacher", "--codec", "fp16", "--min-prob", "1e-6"),
    "top-1": ("teacher", "--top-k", "1"),
    "top-4": ("teacher", "--top-k", "4"),
    "top-16": ("teacher", "--top-k", "16"),
}
"""The stores: whose targets, and the options of teacher-dump."""
MEANS = {"mean": ("train", "dropout-0.3", "paper")}
"""Stores that are the mean of others."""
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
    run.add_argument("--corpus", type=Path, nargs="+", required=True)
    run.add_argument("--rows", nargs="+", choices=[*TEACHERS, *ROWS], required=True)
    run.add_argument("--seeds", nargs="+", type=int, default=[0])
    run.add_argument("--speed", default="0.9,1.0,1.1", help="of the training speech")
    run.add_argument("--pieces", type=int, help="BPE pieces; without it characters")
    run.add_argument("--frame-shift", help="ms; 10 if not given")
    run.add_argument("--device", default="cpu")
    run.add_argument("--jobs", type=int, default=1, help="models trained at a time")
    run.add_argument("--set", dest="overrides", nargs="+", default=[])
    table = actions.add_parser("table")
    table.add_argument("--json", type=Path, required=True)
    table.add_argument("--split", default="test", help="the test split")
    table.add_argument("--search", default="beam10", help="of the rows and steps")
    for each in (run, table):
        each.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.action == "table":
        found = Decodes(arguments.out, arguments.split, arguments.search)
        print(write_table(found, arguments.json, tuple(SEARCHES)))
        return
    prepare(arguments)
    run_rows(arguments)


def run_rows(arguments: argparse.Namespace) -> None:
    """Teachers first, then what their students share, then the students, `jobs` at a time."""
    out, students = arguments.out, [row for row in arguments.rows if row in ROWS]
    teachers = [(row, 0) for row in arguments.rows if row in TEACHERS]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda model: run_row(arguments, *model), teachers))
        if any(ROWS[row].data == "half" for row in students) and not (out / "half").exists():
            prepare_half(arguments.corpus, out, arguments.speed)
        # One by one: two rows that share a store would dump it at once.
        stores = dict.fromkeys(ROWS[row].store for row in students)
        targets = {store: dump(out, store, arguments.device) for store in stores}
        models = [
            (row, seed, targets[ROWS[row].store]) for row in students for seed in arguments.seeds
        ]
        list(pool.map(lambda model: run_row(arguments, *model), models))


def prepare(arguments: argparse.Namespace) -> None:
    """The data that every row shares: the training speech at every speed, its tokens."""
    corpora, out = arguments.corpus, arguments.out
    if (out / "data").exists():
        return
    options = [f"--train={corpus}/train.jsonl" for corpus in corpora]
    options += [*held_out(corpora, out), "--speed", arguments.speed]
    if arguments.pieces:
        options += ["--tokenizer", "bpe", "--vocab-size", str(arguments.pieces)]
    if arguments.frame_shift:
        options += ["--frame-shift", arguments.frame_shift]
    kdpipe("prepare", *options, "--out", out / "data")


def held_out(corpora: list[Path], out: Path) -> list[str]:
    """The options for development and test speech; a further test has its corpus's name."""
    options = [f"--dev={corpus}/dev.jsonl" for corpus in corpora]
    options.append(f"--test={corpora[0]}/test.jsonl")
    for corpus in corpora[1:]:
        out.mkdir(parents=True, exist_ok=True)
        manifest = out / f"{corpus.name}.jsonl"
        write_manifest(manifest, read_manifest(corpus.resolve() / "test.jsonl"))
        options.append(f"--test={manifest}")
    return options


def prepare_half(corpora: list[Path], out: Path, speed: str) -> None:
    """Every second training utterance, with the tokens and features of the teacher."""
    half = out / "half-train.jsonl"
    train = [line for each in corpora for line in read_manifest(each.resolve() / "train.jsonl")]
    write_manifest(half, train[::2])
    like = ("--like", out / "teacher", "--speed", speed)
    kdpipe("prepare", f"--train={half}", *held_out(corpora, out), *like, "--out", out / "half")


def run_row(
    arguments: argparse.Namespace, row: str, seed: int, targets: Sequence[str | Path] = ()
) -> None:
    """Train one model, a student from `targets`, and decode dev and test in every mode."""
    out, model = arguments.out, arguments.out / model_name(row, seed)
    overrides = list(arguments.overrides)
    folder = out / ("data" if row in TEACHERS else ROWS[row].data)
    where = ["--data", folder, "--recipe", RECIPE, "--seed", str(seed)]
    where += ["--device", arguments.device]
    if row in TEACHERS:
        every = [*TEACHERS[row], *overrides]
        kdpipe("train-teacher", *where, "--out", model, *settings(every))
        searches = FEW_SEARCHES
    else:
        every = [*ROWS[row].overrides, *overrides]
        kdpipe("train-student", *where, "--out", model, *targets, *settings(every))
        searches = SEARCHES if row in TABLE_1 else FEW_SEARCHES
    for split in (*SPLITS, *(corpus.name for corpus in arguments.corpus[1:])):
        for name, search in searches.items():
            kdpipe(
                "decode", "--model", model, "--data", out / "data", "--split", split,
                "--out", out / "decode" / f"{model.name}-{split}-{name}", *search,
            )  # fmt: skip


def model_name(row: str, seed: int) -> str:
    """The folder of one model."""
    return row if row in TEACHERS else f"{row}-s{seed}"


def dump(out: Path, store: str | None, device: str) -> list[str | Path]:
    """The options that name the row's teacher; its store is dumped now if it is not there."""
    if store is None:
        return []
    if store == "online":
        return ["--online-teacher", out / "teacher"]
    path = out / f"{store}.zarr"
    if store in MEANS:
        parts = [dump(out, part, device)[1] for part in MEANS[store]]
        kdpipe("store", "merge", *parts, "--average", "--out", path)
        return ["--targets", path]
    teacher, *options = STORES[store]
    kdpipe(
        "teacher-dump", "--data", out / "data", "--split", "train",
        "--teacher", out / teacher, "--out", path, "--device", device, *options,
    )  # fmt: skip
    return ["--targets", path]


def settings(overrides: list[str]) -> list[str]:
    """The overrides as options."""
    return [word for override in overrides for word in ("--set", override)]


def kdpipe(*arguments: str | Path) -> None:
    """Run one command of the product, shown as a user would type it."""
    words = [str(argument) for argument in arguments]
    print(" ".join(["kdpipe", *words]) + "\n", end="", flush=True)
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    program = [sys.executable, "-m", "kdpipe_cli.main"]
    subprocess.run([*program, *words], check=True, env=environment)


if __name__ == "__main__":
    main()
