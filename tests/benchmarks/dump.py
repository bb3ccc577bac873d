"""teacher-dump as a whole: hours of speech per hour, and where the time goes.

    python tests/benchmarks/dump.py [--size M] [--utterances 160] [--json FILE]

Planted utterances of 5-10 s (search_inputs.py: every product is computed, the search ends as a
trained model's would), vocabulary 4233, features on disk as prepare leaves them, beam 10, 10-best;
read, encoded, searched, thinned and written to a Zarr store. Two writers of one thread each, as
on two machines, against one writer with two threads; wall time. The profile is of one writer.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import multiprocessing
import pstats
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from kdpipe.batching import Batch, sorted_batches
from kdpipe.stages.device import keep_freed_memory
from kdpipe.stages.teacher_dump import DumpSettings, teacher_targets
from kdpipe.store import StoreHeader, StoreWriter, TeacherIdentity, TokenizerIdentity

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.benchmarks.search_inputs import Utterance, make_utterances, planted_model

VOCABULARY = 4233
SETTINGS = DumpSettings()
PARTS = {
    "encoder": "encode_named",
    "AR beam search": "joint_beam_search",
    "decoder posteriors": "_decoder_log_probs",
    "thinning": "_targets",
    "store writing": "_write",
    "reading features": "_batches",
    "everything": "_work",
}
"""What the profile shows, and the function whose cumulative time it is."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="M", choices=["L", "M", "S", "XS"])
    parser.add_argument("--utterances", type=int, default=160)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    size, count = arguments.size, arguments.utterances
    hours = sum(u.seconds for u in utterances(count)) / 3600
    two = hours * 3600 / run(size, count, writers=2, threads=1)
    one = hours * 3600 / run(size, count, writers=1, threads=2)
    conditions = f"{count} planted utterances of 5-10 s, vocabulary {VOCABULARY}, 2 cores, wall"
    rows = [
        figure(f"dump_speech_hours_per_hour_{size}", two, one,
               f"{conditions}; two writers of one thread; baseline: one writer, two threads")
    ]  # fmt: skip
    for part, seconds in profile(size, count).items():
        rows.append(figure(f"dump_{size}_{part}", seconds, None, "CPU seconds, one thread", "s"))
    for entry in rows:
        print(entry["name"], entry["value"], entry["unit"], entry["ratio"] or "")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def figure(
    name: str, value: float, baseline: float | None, conditions: str, unit: str = "h/h"
) -> dict[str, Any]:
    ratio = None if baseline is None else round(value / baseline, 3)
    return {
        "name": name, "value": round(value, 3), "unit": unit, "conditions": conditions,
        "baseline": None if baseline is None else round(baseline, 3), "ratio": ratio,
    }  # fmt: skip


def utterances(count: int) -> list[Utterance]:
    return make_utterances(count, 5.0, 10.0, VOCABULARY)


def run(size: str, count: int, writers: int, threads: int) -> float:
    """Wall seconds until the last of `writers` processes has written its part."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(writers + 1)
    with tempfile.TemporaryDirectory() as folder:
        jobs = [
            context.Process(
                target=write_part, args=(folder, size, count, index, writers, threads, ready)
            )
            for index in range(writers)
        ]
        for job in jobs:
            job.start()
        ready.wait()
        started = time.perf_counter()
        for job in jobs:
            job.join()
        return time.perf_counter() - started


def write_part(
    folder: str, size: str, count: int, index: int, writers: int, threads: int, ready: Any
) -> None:
    """One writer's part, after every writer has its model and inputs."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    inputs = Inputs(Path(folder) / f"features{index}", size, count)
    ready.wait()
    _work(inputs, Path(folder) / "store.zarr", index, writers)


class Inputs:
    """The planted model and its utterances, their features in a memory-mapped file."""

    def __init__(self, path: Path, size: str, count: int) -> None:
        found = utterances(count)
        self.seconds = [utterance.seconds for utterance in found]
        self.tokens = [utterance.tokens for utterance in found]
        self.lengths = [len(utterance.features) for utterance in found]
        model = planted_model(size, "ar", found, VOCABULARY)
        self.bundle: Any = SimpleNamespace(
            model=model, tokenizer=SimpleNamespace(sos_eos_id=VOCABULARY - 1)
        )
        # Planted features are looked up by their first number: kept in single precision here.
        torch.cat([utterance.features for utterance in found]).numpy().tofile(path)
        self.starts = np.cumsum([0, *self.lengths])
        self.mapped = np.memmap(path, np.float32, "r").reshape(-1, 80)

    def batch(self, rows: Sequence[int]) -> Batch:
        parts = [
            torch.from_numpy(self.mapped[self.starts[i] : self.starts[i + 1]].copy()) for i in rows
        ]
        tokens = [torch.tensor(self.tokens[i]) for i in rows]
        pad = torch.nn.utils.rnn.pad_sequence
        return Batch(
            ids=tuple(f"u{i:05d}" for i in rows),
            features=pad(parts, batch_first=True),
            feature_lengths=torch.tensor([self.lengths[i] for i in rows]),
            tokens=pad(tokens, batch_first=True),
            token_lengths=torch.tensor([len(part) for part in tokens]),
            audio_seconds=sum(self.seconds[i] for i in rows),
        )


def _work(inputs: Inputs, store: Path, index: int, writers: int) -> None:
    """What teacher-dump does with every batch of its shard."""
    with StoreWriter(store, header(len(inputs.lengths)), writer=f"{index}of{writers}") as writer:
        for batch in _batches(inputs, index, writers):
            for targets, _dense in teacher_targets(inputs.bundle, batch, SETTINGS):
                _write(writer, targets)
        writer.flush()


def _batches(inputs: Inputs, index: int, writers: int) -> Iterator[Batch]:
    for rows in sorted_batches(inputs.lengths, SETTINGS.batch_frames, 256)[index::writers]:
        yield inputs.batch(rows)


def _write(writer: StoreWriter, targets: Any) -> None:
    writer.add(targets)


def header(count: int) -> StoreHeader:
    return StoreHeader(
        teacher=TeacherIdentity("planted", "0" * 64),
        tokenizer=TokenizerIdentity("0" * 64, VOCABULARY, 0, VOCABULARY - 1, VOCABULARY - 1),
        feature_digest="0" * 64, cmvn_digest="0" * 64, subsampling=4, frame_shift_seconds=0.04,
        manifest_digest="0" * 64, split="train", decode={"beam": 10}, nbest=SETTINGS.nbest,
        top_k=SETTINGS.top_k, min_prob=SETTINGS.min_prob, codec=SETTINGS.codec, licence="",
        expected_utterances=count,
    )  # fmt: skip


def profile(size: str, count: int) -> dict[str, float]:
    """CPU seconds of each part for one writer with one thread."""
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        inputs = Inputs(Path(folder) / "features", size, count)
        profiler = cProfile.Profile(time.process_time)
        profiler.runcall(_work, inputs, Path(folder) / "store.zarr", 0, 1)
    found = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    seconds = {name: cumulative for (_, _, name), (_, _, _, cumulative, _) in found.items()}
    return {part: seconds[function] for part, function in PARTS.items()}


if __name__ == "__main__":
    main()
