"""What distillation costs a training step: python tests/benchmarks/training.py [--json FILE]

The student's step with and without targets, the data path alone, and the teacher run in the
loop, on the same batches in turn; training throughput and peak memory; teacher-dump of size M.
Speech is chords made on the spot, models are random: neither changes the cost, except that
posteriors of a random teacher are made as sharp as a trained one's by scaling its logits.
Best of `--rounds` interleaved rounds, process CPU time on one thread; wall time on two.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from kdpipe.batching import Batch, collate, length_buckets
from kdpipe.checkpoint import ModelCard, load_model, save_model
from kdpipe.config import ModelSection, Recipe, load_recipe
from kdpipe.corpus.manifest import read_manifest
from kdpipe.features.prepared import PreparedData
from kdpipe.models import RecognitionModel
from kdpipe.stages.build import fresh_model
from kdpipe.stages.cached_targets import cached_targets
from kdpipe.stages.device import keep_freed_memory
from kdpipe.stages.prepare import PrepareSettings, prepare
from kdpipe.stages.targets import TargetSource, online_targets
from kdpipe.stages.teacher_dump import DumpSettings, Shard, teacher_dump
from kdpipe.stages.train_student import student_losses
from kdpipe.stages.train_teacher import teacher_losses
from kdpipe.stages.training import StepLosses, autocast, make_optimizer
from kdpipe.store import TeacherStore, open_store
from kdpipe.testing import tiny_manifest
from kdpipe.text.tokenizer import Tokenizer

CPU = torch.device("cpu")
PEER_THROUGHPUT = 90.0
Row = dict[str, Any]


def make_data(folder: Path, utterances: int) -> PreparedData:
    """Chord utterances of 3-6 s as prepared data."""
    manifest = tiny_manifest(folder / "train", utterances, 0, words=(4, 7))
    prepare({"train": read_manifest(manifest)}, folder / "data", PrepareSettings(), workers=0)
    return PreparedData.open(folder / "data")


def make_teacher(data: PreparedData, recipe: Recipe, out: Path) -> Path:
    """A random teacher of the recipe's size with sharp posteriors."""
    tokenizer = Tokenizer.load(data.tokenizer)
    model = fresh_model(recipe.teacher.model, "ar", tokenizer, 0, CPU)
    with torch.no_grad():
        model.ctc.ctc_lo.weight *= 20.0
        model.decoder.output_layer.weight *= 20.0
    card = ModelCard(
        "random", model.config, tokenizer.fingerprint, data.feature_type, data.feature_digest,
        "", 0, "benchmark",
    )  # fmt: skip
    save_model(out, card, model.state_dict(), data.tokenizer, data.cmvn)
    return out


def batches_of(data: PreparedData, frames: int) -> list[list[int]]:
    return length_buckets(data.split("train").frame_counts.tolist(), frames, 512, 0, 0)


def epoch(
    data: PreparedData, batches: Sequence[Sequence[int]], step: Callable[[Batch], object]
) -> None:
    """One pass: read every batch, do `step`."""
    split = data.split("train")
    for indices in batches:
        step(collate(split, data.cmvn, indices))


def trainer(
    model: RecognitionModel, losses: StepLosses, stage_epoch: int
) -> Callable[[Batch], None]:
    """The whole update, as training does it."""
    optimizer = make_optimizer(model, 1e-2)
    generator = torch.Generator().manual_seed(0)

    def step(batch: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(CPU, "auto"):
            total = losses(batch, stage_epoch, generator)["total"]
        torch.autograd.backward(total)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-4
        optimizer.step()

    return step


def best(rounds: int, runs: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Smallest CPU time of each run over interleaved rounds, after one that is not counted."""
    found = dict.fromkeys(runs, float("inf"))
    for number in range(rounds + 1):
        for name, run in runs.items():
            started = time.process_time()
            run()
            if number:
                found[name] = min(found[name], time.process_time() - started)
    return found


def row(name: str, value: float, unit: str, baseline: float | None, conditions: str) -> Row:
    return {
        "name": name,
        "value": round(value, 4),
        "unit": unit,
        "baseline": None if baseline is None else round(baseline, 4),
        "ratio": None if not baseline else round(value / baseline, 4),
        "conditions": conditions,
    }


def overhead_rows(
    data: PreparedData, recipe: Recipe, teacher: Path, store: TeacherStore, rounds: int
) -> list[Row]:
    """The student's epoch plain, with each kind of target, and with the teacher in the loop."""
    batches = batches_of(data, recipe.student.training.batch_frames)
    cached = cached_targets(store, 10, CPU)
    online = online_targets(load_model(teacher).model)
    last = sum(stage.epochs for stage in recipe.student.stages) - 1

    def run(source: TargetSource | None, stage_epoch: int) -> Callable[[], None]:
        model = student_model(data, recipe.student.model)
        step = trainer(model, student_losses(model, recipe, source), stage_epoch)
        return lambda: epoch(data, batches, step)

    found = best(
        rounds,
        {
            "features": lambda: epoch(data, batches, lambda batch: None),
            "with_targets": lambda: epoch(data, batches, lambda batch: cached(batch, True)),
            "plain": run(None, 0),
            "frame": run(cached, 0),
            "sequence": run(cached, last),
            "online_frame": run(online, 0),
            "online_sequence": run(online, last),
        },
    )
    seconds = float(sum(u.duration for u in data.split("train").utterances))
    base = f"{len(data.split('train'))} utterances, {seconds:.0f} s of speech, recipe {recipe.name}"
    one = f"{base}, CPU seconds an epoch, 1 thread"
    plain_path = found["plain"] - found["features"] + found["with_targets"]
    return [
        row("train_data_path_with_targets", found["with_targets"], "s", found["features"],
            f"{one}; reading and padding alone; baseline: features alone"),
        row("train_epoch_data_path_with_targets", plain_path, "s", found["plain"],
            f"{one}; plain step + reading of targets; baseline: plain student"),
        row("train_epoch_with_targets", found["frame"], "s", found["plain"],
            f"{one}; frame losses (stage 1); baseline: plain student"),
        row("train_epoch_with_nbest", found["sequence"], "s", found["plain"],
            f"{one}; frame and 10-best losses (stage 2); baseline: plain student"),
        row("train_epoch_online_teacher", found["online_frame"], "s", found["frame"],
            f"{one}; stage 1, teacher in the loop; baseline: cached"),
        row("train_epoch_online_teacher_nbest", found["online_sequence"], "s", found["sequence"],
            f"{one}; stage 2, teacher and its beam search in the loop; baseline: cached"),
    ]  # fmt: skip


def student_model(data: PreparedData, section: ModelSection) -> RecognitionModel:
    return fresh_model(section, "mask-ctc", Tokenizer.load(data.tokenizer), 0, CPU)


def throughput_rows(data: PreparedData, rounds: int) -> list[Row]:
    """Audio-seconds per second of joint CTC/attention training, one core and two."""
    split = data.split("train")
    batches = [list(range(i, i + 16)) for i in range(0, len(split) - 15, 16)]
    seconds = sum(split.utterances[i].duration for batch in batches for i in batch)
    peer = ModelSection("custom", 64, 4, 256, 4, 2, 15)
    demo = load_recipe("demo")
    sizes = {"peer_size": peer, "demo_teacher": demo.teacher.model,
             "demo_student": demo.student.model, "XS": ModelSection("XS")}  # fmt: skip
    rows = []
    for name, section in sizes.items():
        tokenizer = Tokenizer.load(data.tokenizer)
        model = fresh_model(section, "ar", tokenizer, 0, CPU)
        step = trainer(model, teacher_losses(model, demo), 0)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            fastest = min(_wall(lambda s=step: epoch(data, batches, s)) for _ in range(rounds + 1))  # type: ignore[misc]
            rows.append(
                row(
                    f"train_throughput_{name}_threads{threads}", seconds / fastest,
                    "audio-s/s", PEER_THROUGHPUT if name == "peer_size" and threads == 1 else None,
                    "AR training, batches of 16, SpecAugment, wall time; baseline: the peer's 90",
                )
            )  # fmt: skip
        torch.set_num_threads(1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [*rows, row("train_peak_memory", peak, "MiB", None, "this process, everything above")]


def _wall(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--utterances", type=int, default=96)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = make_data(folder, arguments.utterances)
        recipe = load_recipe("demo")
        teacher = make_teacher(data, recipe, folder / "teacher")
        store = folder / "train.zarr"
        teacher_dump(data.folder, "train", teacher, store, DumpSettings(), Shard(), "cpu")
        rows = overhead_rows(data, recipe, teacher, open_store(store), arguments.rounds)
        rows += throughput_rows(data, arguments.rounds)
    for entry in rows:
        print({key: value for key, value in entry.items() if key != "conditions"})
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
