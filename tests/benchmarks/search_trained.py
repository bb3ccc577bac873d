"""Mask-CTC on a trained student's own posteriors, one core.

python tests/benchmarks/search_trained.py --model STUDENT --data DATA [--split test] [--json OUT]

For greedy CTC and beams 1, 5 and 10 at batch 1: real-time factor (thread CPU time, features
given), masks an utterance, decoder passes and decoder rows an utterance; rows are what the
bound saves.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdpipe.batching import Batch, collate
from kdpipe.checkpoint import load_model
from kdpipe.features.prepared import PreparedData
from kdpipe.models import MaskedDecoder, RecognitionModel
from kdpipe.search.ctc_greedy import ctc_greedy
from kdpipe.search.mask_ctc import mask_ctc_search

MODES = ("encoder", "greedy", "beam1", "beam5", "beam10")


def run(model: RecognitionModel, batch: Batch, mode: str) -> None:
    encoded = model.encode(batch.features, batch.feature_lengths)
    if mode == "greedy":
        ctc_greedy(model.ctc_log_probs(encoded.hidden), encoded.lengths)
    elif mode != "encoder":
        mask_ctc_search(model, encoded, beam=int(mode.removeprefix("beam")))


def seconds_of(model: RecognitionModel, batches: Sequence[Batch], mode: str) -> float:
    start = time.thread_time()
    with torch.inference_mode():
        for batch in batches:
            run(model, batch, mode)
    return time.thread_time() - start


def count_calls(model: RecognitionModel, batches: Sequence[Batch], mode: str) -> dict[str, float]:
    """Passes, rows and first masks an utterance."""
    decoder = model.decoder
    assert isinstance(decoder, MaskedDecoder)
    original: Any = decoder.forward_with_memory
    totals = {"passes": 0, "rows": 0, "filled": 0}

    def counted(tokens: Tensor, lengths: Tensor, memory: Any, wanted: Tensor) -> Tensor:
        totals["passes"] += 1
        totals["rows"] += tokens.shape[0] * tokens.shape[1]
        totals["filled"] += int(wanted.sum())
        result: Tensor = original(tokens, lengths, memory, wanted)
        return result

    decoder.forward_with_memory = counted  # type: ignore[method-assign]
    seconds_of(model, batches, mode)
    decoder.forward_with_memory = original  # type: ignore[method-assign]
    return {name: total / len(batches) for name, total in totals.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bundle = load_model(arguments.model)
    split = PreparedData.open(arguments.data).split(arguments.split)
    batches = [collate(split, bundle.cmvn, [index]) for index in range(len(split))]
    speech = sum(batch.audio_seconds for batch in batches)
    best = dict.fromkeys(MODES, float("inf"))
    for _ in range(arguments.rounds):
        for mode in MODES:
            best[mode] = min(best[mode], seconds_of(bundle.model, batches, mode))
    rows: list[dict[str, object]] = []
    for mode in MODES:
        row: dict[str, object] = {"mode": mode, "rtf": best[mode] / speech}
        if mode.startswith("beam"):
            row |= count_calls(bundle.model, batches, mode)
        rows.append(row)
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
