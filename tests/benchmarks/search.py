"""What decoding costs, on one core: python tests/benchmarks/search.py --json OUT.json

Random weights of the paper's sizes with planted outputs (search_inputs.py), 20 utterances of
5-10 s. Real-time factors are thread CPU time by seconds of speech, features given: they
include the encoder, whose own factor stands beside them. Every mode runs in turn, several
rounds, and the fastest round counts.

`--growth` measures how search alone grows with batch, beam and length instead.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdpipe.models import Encoded, RecognitionModel
from kdpipe.models.config import Kind
from kdpipe.search.ctc_greedy import ctc_greedy
from kdpipe.search.joint_beam import joint_beam_search
from kdpipe.search.mask_ctc import mask_ctc_search

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.benchmarks.search_inputs import Utterance, make_utterances, planted_model
from tests.search.reference import reference_search

VOCABULARY = 4233
PEER = {("M", 1): 0.364, ("M", 16): 0.364, ("XS", 1): 0.183, ("XS", 16): 0.183}
"""ESPnet's AR beam 10 at batch 1, one core, the same inputs on a like machine."""

Search = Callable[[RecognitionModel, Encoded], object]
Row = dict[str, object]


def greedy(model: RecognitionModel, encoded: Encoded) -> object:
    return ctc_greedy(model.ctc_log_probs(encoded.hidden), encoded.lengths)


def ar(nbest: int, beam: int = 10) -> Search:
    return lambda model, encoded: joint_beam_search(model, encoded, beam=beam, nbest=nbest)


def mask_ctc(beam: int) -> Search:
    return lambda model, encoded: mask_ctc_search(model, encoded, beam=beam)


def reference(model: RecognitionModel, encoded: Encoded) -> object:
    """The straightforward search of the tests: one utterance, prefixes computed again."""
    return reference_search(model, encoded)


def batches(
    utterances: Sequence[Utterance], size: int
) -> Iterator[tuple[Tensor, Tensor, list[Utterance]]]:
    """Batches of utterances of like length, as stages make them."""
    ordered = sorted(utterances, key=lambda utterance: len(utterance.features))
    for start in range(0, len(ordered), size):
        part = ordered[start : start + size]
        features = [utterance.features for utterance in part]
        lengths = torch.tensor([len(rows) for rows in features])
        yield torch.nn.utils.rnn.pad_sequence(features, batch_first=True), lengths, part


def real_time_factor(
    model: RecognitionModel, utterances: Sequence[Utterance], size: int, search: Search | None
) -> float:
    """CPU seconds by seconds of speech: encoder and, if given, search."""
    start = time.thread_time()
    with torch.inference_mode():
        for features, lengths, _ in batches(utterances, size):
            encoded = model.encode(features, lengths)
            if search is not None:
                search(model, encoded)
    seconds: float = sum(utterance.seconds for utterance in utterances)
    return (time.thread_time() - start) / seconds


def fastest(rounds: int, runs: dict[str, Callable[[], float]]) -> dict[str, float]:
    """The smallest value of each run over rounds in which all take their turn."""
    results = {name: float("inf") for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            results[name] = min(results[name], run())
    return results


def check(model: RecognitionModel, utterances: Sequence[Utterance]) -> None:
    """The searches must find what is planted, or nothing that they cost means anything."""
    with torch.inference_mode():
        for features, lengths, part in batches(utterances, 16):
            encoded = model.encode(features, lengths)
            found: Sequence[Sequence[Any]]
            if model.config.kind == "ar":
                found = joint_beam_search(model, encoded, nbest=1)
            else:
                found = mask_ctc_search(model, encoded, beam=10)
            assert [item[0].tokens for item in found] == [item.tokens for item in part]


def measure(size: str, rounds: int) -> dict[str, float]:
    utterances = make_utterances(20, 5.0, 10.0, VOCABULARY)
    some = sorted(utterances, key=lambda item: len(item.features))[::7]
    teacher = planted_model(size, "ar", utterances, VOCABULARY)
    student = planted_model(size, "mask-ctc", utterances, VOCABULARY)
    check(teacher, utterances)
    check(student, utterances)
    runs: dict[str, Callable[[], float]] = {}
    for batch in (1, 16):
        for name, model, search in (
            ("encoder", teacher, None),
            ("greedy", student, greedy),
            ("ar_nbest10", teacher, ar(10)),
            ("ar_nbest1", teacher, ar(1)),
            ("mask_beam1", student, mask_ctc(1)),
            ("mask_beam5", student, mask_ctc(5)),
            ("mask_beam10", student, mask_ctc(10)),
        ):
            runs[f"{name}_batch{batch}"] = lambda m=model, b=batch, s=search: real_time_factor(  # type: ignore[misc]
                m, utterances, b, s
            )
    results = fastest(rounds, runs)
    results["reference"] = real_time_factor(teacher, some, 1, reference)
    return results


def rows_of(size: str, found: dict[str, float]) -> list[Row]:
    conditions = (
        f"{size}, V = {VOCABULARY}, 20 utterances of 5-10 s, 1 thread, planted outputs, "
        f"encoder included (alone: {found['encoder_batch1']:.4f} at batch 1, "
        f"{found['encoder_batch16']:.4f} at 16)"
    )

    def row(name: str, value: float, baseline: float, what: str) -> Row:
        return {
            "name": name,
            "value": value,
            "unit": "rtf",
            "baseline": baseline,
            "ratio": value / baseline,
            "conditions": f"{conditions}; baseline: {what}",
        }

    rows = []
    for batch in (1, 16):
        value = found[f"ar_nbest10_batch{batch}"]
        times = PEER[size, batch] / value
        what = (
            f"straightforward reference on 3 of them; {times:.1f}x the peer's {PEER[size, batch]}"
        )
        rows.append(row(f"ar_beam10_{size}_batch{batch}_rtf", value, found["reference"], what))
        rows.append(
            row(
                f"ar_beam10_nbest1_{size}_batch{batch}_rtf",
                found[f"ar_nbest1_batch{batch}"],
                value,
                "the same with the 10 best",
            )
        )
    beam_1, beam_10 = found["mask_beam1_batch1"], found["mask_beam10_batch1"]
    rows += [
        row(f"mask_ctc_{size}_beam1_rtf", beam_1, found["greedy_batch1"], "greedy CTC"),
        row(f"mask_ctc_{size}_beam5_rtf", found["mask_beam5_batch1"], beam_1, "beam 1"),
        row(f"mask_ctc_{size}_beam10_rtf", beam_10, beam_1, "beam 1"),
        row(f"nar_beam10_{size}_rtf", beam_10, found["ar_nbest1_batch1"], "AR beam 10, 1-best"),
    ]
    for name in ("encoder", "greedy", "mask_beam1", "mask_beam10"):
        alone, together = found[f"{name}_batch1"], found[f"{name}_batch16"]
        rows.append(row(f"{name}_{size}_batch16_rtf", together, alone, "batch 1"))
    return rows


def search_seconds(
    kind: Kind, size: str, utterances: Sequence[Utterance], batch: int, beam: int
) -> tuple[float, float]:
    """CPU seconds of search alone by seconds of speech, and the MiB that decoding came to need."""
    torch.set_num_threads(1)
    search = ar(10, beam) if kind == "ar" else mask_ctc(beam)
    model = planted_model(size, kind, utterances, VOCABULARY)
    spent, seconds = 0.0, 0.0
    before = _reset_peak()
    with torch.inference_mode():
        for features, lengths, part in batches(utterances, batch):
            encoded = model.encode(features, lengths)
            start = time.thread_time()
            search(model, encoded)
            spent += time.thread_time() - start
            seconds += sum(utterance.seconds for utterance in part)
    return spent / seconds, _peak("VmHWM") - before


def _reset_peak() -> float:
    """Resident MiB now; from here on the kernel counts the peak afresh (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak("VmRSS")


def _peak(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024.0 for line in lines if line.startswith(field))


def grow(size: str) -> Iterator[Row]:
    """Search alone, without the encoder's time: batch, beam, then length.

    Each in a process of its own, so that none finds memory that another has left.
    """
    kinds: tuple[Kind, ...] = ("ar", "mask-ctc")
    alike = make_utterances(16, 7.5, 7.5, VOCABULARY)
    cases = [("batch", kind, alike, batch, 10) for batch in (1, 2, 4, 8, 16) for kind in kinds]
    cases += [("beam", kind, alike[:4], 1, beam) for beam in (1, 5, 10, 20) for kind in kinds]
    for length in (5.0, 10.0, 20.0, 40.0, 80.0):
        long = make_utterances(1, length, length, VOCABULARY)
        cases += [("length", kind, long, 1, 10) for kind in kinds]
    for studied, kind, utterances, batch, beam in cases:
        with multiprocessing.get_context("fork").Pool(1) as pool:
            factor, memory = pool.apply(search_seconds, (kind, size, utterances, batch, beam))
        yield {
            "name": f"growth_{studied}_{kind}_{size}",
            "batch": batch,
            "beam": beam,
            "seconds": utterances[0].seconds,
            "search_rtf": factor,
            "mib": memory,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--sizes", nargs="+", default=["M", "XS"], choices=["L", "M", "S", "XS"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--growth", action="store_true", help="growth of search alone instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for size in arguments.sizes:
        rows += grow(size) if arguments.growth else rows_of(size, measure(size, arguments.rounds))
    for row in rows:
        print("  ".join(f"{key}={value}" for key, value in row.items() if key != "conditions"))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
