"""Speed of the models on one core: python tests/benchmarks/models.py [--json FILE]

Encoder real-time factors on utterances of 5-10 s (batch 1, vocabulary 4233, random weights,
front end excluded), the time of a decoder step for 10 hypotheses, and training throughput on
batches of 16 utterances of 1-5 s, the whole step: forward, CTC and attention loss, backward,
clipping, Adam. Features are random: values do not change the cost. Best of `--repeats` runs,
thread CPU time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpipe.models import (
    CausalDecoder,
    ModelConfig,
    RecognitionModel,
    build_model,
    reorder,
    size_by_name,
)

FRAMES_PER_SECOND = 100
VOCABULARY = 4233
PEER_TRAINING = 90.0
PEER_ENCODER = {"XS": 0.014, "M": 0.047}
PEER_GREEDY = {"XS": 0.015, "M": 0.054}


class Figure(NamedTuple):
    """One measured value beside the peer's (0: none)."""

    name: str
    value: float
    unit: str
    baseline: float
    conditions: str


class Batch(NamedTuple):
    """Padded features and tokens with their lengths, and the seconds of speech."""

    features: Tensor
    lengths: Tensor
    tokens: Tensor
    token_lengths: Tensor
    seconds: float


def best_of(run: Callable[[], object], repeats: int) -> float:
    """Smallest thread CPU time of `repeats` runs after a first one, seconds."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.thread_time()
        run()
        seconds.append(time.thread_time() - start)
    return min(seconds[1:])


def encoder_figures(size: str, repeats: int) -> list[Figure]:
    """Real-time factor of the encoder, without and with the greedy CTC decision."""
    torch.manual_seed(0)
    model = build_model(size_by_name(size, VOCABULARY)).eval()
    counts = torch.linspace(500, 1000, 20).long().tolist()
    inputs = [torch.randn(1, count, 80) for count in counts]
    seconds = sum(counts) / FRAMES_PER_SECOND

    def encode(greedy: bool) -> None:
        with torch.inference_mode():
            for features in inputs:
                encoded = model.encode(features, torch.tensor([features.shape[1]]))
                if greedy:
                    model.ctc_log_probs(encoded.hidden).max(2)

    note = "20 utterances of 5-10 s, batch 1"
    plain = best_of(lambda: encode(False), repeats) / seconds
    greedy = best_of(lambda: encode(True), repeats) / seconds
    return [
        Figure(f"encoder_{size}_rtf", plain, "rtf", PEER_ENCODER[size], note),
        Figure(f"encoder_ctc_{size}_rtf", greedy, "rtf", PEER_GREEDY[size], note),
    ]


def step_figure(size: str, batch: int, repeats: int) -> Figure:
    """Milliseconds of one decoder step, 10 hypotheses an utterance, over 22 tokens."""
    torch.manual_seed(0)
    model = build_model(size_by_name(size, VOCABULARY)).eval()
    decoder, steps = model.decoder, 22
    assert isinstance(decoder, CausalDecoder)
    hidden = torch.randn(batch, 187, model.config.dim)

    def search() -> None:
        with torch.inference_mode():
            memory = decoder.project_memory(hidden, torch.full((batch,), 187))
            cache = decoder.start(memory, 10)
            for _ in range(steps):
                tokens = torch.randint(2, VOCABULARY, (batch, 10))
                _, cache = decoder.step(tokens, cache, memory)
                cache = reorder(cache, torch.randint(0, 10, (batch, 10)))

    milliseconds = 1e3 * best_of(search, repeats) / steps
    note = "187 frames, 10 hypotheses, memory projection included"
    return Figure(f"decoder_step_{size}_batch{batch}", milliseconds, "ms", 0.0, note)


def training_batches(vocabulary: int) -> list[Batch]:
    """160 utterances of 1-5 s in batches of 16 of like length, 8 characters a second."""
    generator = torch.Generator().manual_seed(0)
    seconds = torch.linspace(1.0, 5.0, 160).view(10, 16)
    batches = []
    for row in seconds:
        lengths, sizes = (FRAMES_PER_SECOND * row).long(), (8 * row).long()
        features = torch.randn(16, int(lengths.max()), 80, generator=generator)
        tokens = torch.randint(1, vocabulary - 1, (16, int(sizes.max())), generator=generator)
        batches.append(Batch(features, lengths, tokens, sizes, float(row.sum())))
    return batches


def joint_loss(model: RecognitionModel, batch: Batch) -> Tensor:
    """0.3 CTC + 0.7 label-smoothed attention, sums an utterance."""
    encoded = model.encode(batch.features, batch.lengths)
    log_probs = model.ctc_log_probs(encoded.hidden).transpose(0, 1)
    sizes, tokens, end = batch.token_lengths, batch.tokens, model.config.vocab_size - 1
    ctc = F.ctc_loss(log_probs, tokens, encoded.lengths, sizes, reduction="sum", zero_infinity=True)
    inputs = torch.cat([tokens.new_full((len(tokens), 1), end), tokens], 1)
    targets = torch.cat([tokens, tokens[:, :1]], 1).scatter(1, sizes[:, None], end)
    real = torch.arange(inputs.shape[1]) <= sizes[:, None]
    logits = model.decoder_logits(encoded, inputs, sizes + 1)
    attention = F.cross_entropy(logits[real], targets[real], label_smoothing=0.1, reduction="sum")
    return (0.3 * ctc + 0.7 * attention) / len(tokens)


def training_figure(name: str, config: ModelConfig, baseline: float, repeats: int) -> Figure:
    """Seconds of speech trained on in a second."""
    torch.manual_seed(0)
    model, batches = build_model(config), training_batches(config.vocab_size)
    optimiser = torch.optim.Adam(model.parameters(), 1e-4, fused=True)

    def epoch() -> None:
        for batch in batches:
            torch.autograd.backward(joint_loss(model, batch))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimiser.step()
            optimiser.zero_grad()

    speed = sum(batch.seconds for batch in batches) / best_of(epoch, repeats)
    note = "16 utterances of 1-5 s a batch, whole update"
    return Figure(name, speed, "audio_s/s", baseline, note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    small = ModelConfig("ar", 30, 64, 4, 256, encoder_layers=4, decoder_layers=2, kernel=15)
    figures = [figure for size in PEER_ENCODER for figure in encoder_figures(size, options.repeats)]
    figures += [
        step_figure(size, batch, options.repeats) for size in PEER_ENCODER for batch in (1, 16)
    ]
    figures += [
        training_figure("training_dim64", small, PEER_TRAINING, options.repeats),
        training_figure("training_XS", size_by_name("XS", 30), 0.0, options.repeats),
    ]
    for figure in figures:
        beside = f"  (peer {figure.baseline:g})" if figure.baseline else ""
        print(f"{figure.name:<24}{figure.value:10.4g} {figure.unit}{beside}  {figure.conditions}")
    if options.json:
        rows = [{**figure._asdict(), "ratio": ratio(figure)} for figure in figures]
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def ratio(figure: Figure) -> float | None:
    """Value over baseline, None without one."""
    return figure.value / figure.baseline if figure.baseline else None


if __name__ == "__main__":
    main()
