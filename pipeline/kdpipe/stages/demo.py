"""demo: the five stages on speech synthesised on the spot, and the table they end in."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kdpipe.checkpoint import read_card
from kdpipe.config import Recipe, to_table
from kdpipe.corpus.manifest import read_manifest
from kdpipe.corpus.synthetic import synthesise
from kdpipe.files import read_json, read_jsonl, write_json
from kdpipe.models import build_model, count_parameters
from kdpipe.parallel import end_with_parent, interrupts_held
from kdpipe.scoring import ScoreReport
from kdpipe.stages.claim import claimed, mark_complete
from kdpipe.stages.decode import Runtime, decode_split
from kdpipe.stages.prepare import PrepareSettings, prepare
from kdpipe.stages.recognise import SearchSettings
from kdpipe.stages.report import write_report
from kdpipe.stages.report_posteriors import PosteriorSettings
from kdpipe.stages.teacher_dump import DumpSettings, Shard, teacher_dump
from kdpipe.stages.train_student import train_student
from kdpipe.stages.train_teacher import train_teacher
from kdpipe.store import store_info

__all__ = ["DemoRow", "demo_table", "run_demo"]

SPLITS = ("train", "dev", "test")
SNR_DB = (15.0, 35.0)
"""Noise of the demo's speech: less than the corpus could have, for models that train in minutes."""
MASK_THRESHOLD = 0.5
"""Models of minutes are rarely 99% sure: at the paper's p_thr nearly all would be masked."""
STUDENTS = {"plain": False, "f-kd": True, "fs-kd": True}
"""Students of the table, and whether they see the teacher's targets."""


@dataclass(frozen=True)
class DemoRow:
    """One line of the table: a model, what it cost, and its errors on dev and test."""

    name: str
    params: int
    train_seconds: float
    dev: ScoreReport
    test: ScoreReport

    def to_json(self) -> dict[str, object]:
        """The row as results.json has it."""
        return {
            "name": self.name,
            "params": self.params,
            "train_seconds": round(self.train_seconds, 1),
            "dev": {"wer": self.dev.to_json()["wer"], "cer": self.dev.to_json()["cer"]},
            "test": {"wer": self.test.to_json()["wer"], "cer": self.test.to_json()["cer"]},
            "rtf": self.test.rtf,
        }


def run_demo(
    out: Path,
    recipe: Recipe,
    seed: int,
    device: str,
    say: Callable[[str], None],
    utterances: tuple[int, int, int] = (1200, 100, 100),
) -> list[DemoRow]:
    """Run every stage into `out` (finished ones are found complete), write results.json and
    report.html.

    `say` is called with a line before each stage; `utterances` to synthesise for train, dev
    and test. Errors: those of `claimed` and of the stages.
    """
    started = time.perf_counter()
    torch.set_num_threads(1)
    settings = {
        "command": "demo",
        "recipe": to_table(recipe),
        "seed": seed,
        "utterances": list(utterances),
    }
    with claimed(out, settings):
        rows = _run_stages(out, recipe, seed, device, say, utterances)
        _write_results(out, rows, time.perf_counter() - started)
        write_report([out], out / "report.html", (), PosteriorSettings(device=device))
        mark_complete(out, settings)
    return rows


def _run_stages(
    out: Path,
    recipe: Recipe,
    seed: int,
    device: str,
    say: Callable[[str], None],
    utterances: tuple[int, int, int],
) -> list[DemoRow]:
    say(f"1/6 speaking {sum(utterances)} sentences with espeak-ng")
    synthesise(out / "corpus", *utterances, seed=seed, snr=SNR_DB)
    say("2/6 preparing features and tokens")
    manifests = {name: read_manifest(out / "corpus" / f"{name}.jsonl") for name in SPLITS}
    prepare(manifests, out / "data", PrepareSettings())
    say("3/6 training the teacher and, beside it, the plain student: about half of the time")
    with _beside(_train_student, out, recipe, "plain", seed, device):
        train_teacher(out / "data", recipe, out / "teacher", seed, device)
    say("4/6 running the teacher once over the training speech, two writers")
    with _beside(_dump, out, Shard(1, 2), device):
        _dump(out, Shard(0, 2), device)
    _dump(out, Shard(0, 2), device)
    say("5/6 training the distilled students, two at once")
    with _beside(_train_student, out, recipe, "f-kd", seed, device):
        _train_student(out, recipe, "fs-kd", seed, device)
    say("6/6 decoding with all four models, scoring, writing the report")
    return [_row(out, name, device) for name in ("teacher", *STUDENTS)]


@contextmanager
def _beside(function: Callable[..., object], *arguments: object) -> Iterator[None]:
    """Run `function` in a process of its own during the block, and wait for it at the end.

    Models this small gain nothing from a second thread, and a core from a second process. The
    process is quiet and dies with this one; stages resume, so one that failed there is run
    again here, where its error is seen.
    """
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_quietly, args=(function, arguments), daemon=True)
    with interrupts_held():
        process.start()
    try:
        yield
        process.join()
    finally:
        process.terminate()
    if process.exitcode:
        function(*arguments)


def _quietly(function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    """Only one process may draw a progress bar."""
    end_with_parent()
    torch.set_num_threads(1)
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        function(*arguments)


def _train_student(out: Path, recipe: Recipe, name: str, seed: int, device: str) -> None:
    targets = str(out / "train.zarr") if STUDENTS[name] else None
    train_student(out / "data", _student_recipe(recipe, name), out / name, targets, seed, device)


def _dump(out: Path, shard: Shard, device: str) -> None:
    teacher_dump(
        out / "data", "train", out / "teacher", out / "train.zarr", DumpSettings(), shard, device
    )


def _student_recipe(recipe: Recipe, name: str) -> Recipe:
    """The +F-KD row is the same schedule without the sequence-level terms."""
    return replace(recipe, distillation=replace(recipe.distillation, sequence=name != "f-kd"))


def _row(out: Path, name: str, device: str) -> DemoRow:
    model = out / name
    reports = {
        split: decode_split(
            model,
            out / "data",
            split,
            out / "decode" / f"{name}-{split}",
            SearchSettings(mask_threshold=MASK_THRESHOLD),
            Runtime(device=device),
        )
        for split in ("dev", "test")
    }
    parameters = count_parameters(build_model(read_card(model).sizes))
    return DemoRow(name, parameters, _train_seconds(model), reports["dev"], reports["test"])


def _train_seconds(model: Path) -> float:
    """Seconds spent in updates, over every run that was needed."""
    epochs = (r for r in read_jsonl(model / "train.jsonl") if r["type"] == "epoch")
    return sum(float(str(record["seconds"])) for record in epochs)


def _write_results(out: Path, rows: list[DemoRow], seconds: float) -> None:
    """A repeated run finds everything complete: the seconds of the first one stand."""
    path = out / "results.json"
    earlier = read_json(path) if path.is_file() else None
    if isinstance(earlier, Mapping):
        seconds = max(seconds, float(str(earlier["seconds"])))
    content = {
        "seconds": round(seconds, 1),
        "rows": [row.to_json() for row in rows],
        "store": store_info(out / "train.zarr"),
    }
    write_json(path, content)


def demo_table(rows: list[DemoRow], out: Path) -> str:
    """The table for people: errors on the test split, and where to look next."""
    head = (
        f"{'model':<10}{'params':>10}{'train s':>9}{'CER %':>8}{'WER %':>8}{'95% interval':>15}"
        f"{'I+D %':>8}{'RTF':>8}"
    )
    store = store_info(out / "train.zarr")
    return "\n".join(
        [
            head,
            *(_table_line(row) for row in rows),
            "search: beam 10, one thread; joint CTC/attention (teacher), Mask-CTC with p_thr"
            f" {MASK_THRESHOLD} (students)",
            f"teacher store: {store['bytes'] / 1e6:.2f} MB, {store['mb_per_hour']:.2f} MB per hour"
            f" of speech, {store['utterances']} utterances",
            f"Look next: {out}/results.json, {out}/decode/fs-kd-test/hyp.jsonl,"
            f" kdpipe store info {out}/train.zarr",
            f"Report, curves and pictures: {out}/report.html",
        ]
    )


def _table_line(row: DemoRow) -> str:
    cer, wer = row.test.cer, row.test.wer
    assert cer is not None
    assert wer is not None
    interval = f"{100 * wer.ci95[0]:.1f} - {100 * wer.ci95[1]:.1f}"
    return (
        f"{row.name:<10}{row.params:>10}{row.train_seconds:>9.0f}{100 * cer.rate:>8.2f}"
        f"{100 * wer.rate:>8.2f}{interval:>15}{100 * wer.ins_del_rate:>8.2f}{row.test.rtf:>8.4f}"
    )
