"""What each loss costs per batch, forward and backward: python tests/benchmarks/losses.py

Times run from the log-probs (or logits) back to them: the log-softmax and the model are excluded.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from kdpipe.losses import (
    TailRule,
    UtteranceLoss,
    attention_loss,
    class_log_probs,
    ctc_loss,
    decoder_frame_loss,
    decoder_sequence_loss,
    draw_masks,
    encoder_frame_loss,
    encoder_sequence_loss,
    flatten_hypotheses,
    length_mask,
    masked_lm_loss,
    truncate_rows,
)


def best_of(run: Callable[[], object], repeats: int) -> float:
    """Smallest time of `repeats` runs, seconds."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def timed(name: str, source: Tensor, loss: Callable[[Tensor], UtteranceLoss], repeats: int) -> None:
    """Print the time of `loss` and its gradient by `source`."""
    leaf = source.detach().requires_grad_()

    def step() -> None:
        torch.autograd.grad(loss(leaf).total.sum(), leaf)

    print(f"{name:<28}{1e3 * best_of(step, repeats):9.1f} ms")


def sharp_logits(generator: torch.Generator, *shape: int) -> Tensor:
    """One class far ahead: about 0.9 of the mass at 4000 classes."""
    logits = torch.randn(*shape, generator=generator)
    best = torch.randint(0, shape[-1], (*shape[:-1], 1), generator=generator)
    return logits.scatter_(-1, best, 11.0)


class Sizes(NamedTuple):
    utterances: int
    frames: int
    tokens: int
    nbest: int
    classes: int


def measure_encoder(sizes: Sizes, generator: torch.Generator, repeats: int) -> None:
    B, T, L, N, V = sizes
    frames = torch.randint(int(0.8 * T), T + 1, (B,), generator=generator)
    logits = sharp_logits(generator, B, T, V)
    seconds = best_of(lambda: class_log_probs(logits, V), repeats)
    print(f"{'log-softmax (forward)':<28}{1e3 * seconds:9.1f} ms")
    log_probs = class_log_probs(logits, V)
    tokens = torch.randint(1, V - 1, (B, L), generator=generator)
    lengths = torch.randint(L // 2, L + 1, (B,), generator=generator)
    timed("ctc", log_probs, lambda q: ctc_loss(q, frames, tokens, lengths), repeats)
    teacher = truncate_rows(log_probs[length_mask(frames, T)], top_k=32, min_prob=1e-3)
    print(f"{'classes kept a frame':<28}{teacher.counts.double().mean():9.1f}")
    for rule in get_args(TailRule):
        loss = partial(encoder_frame_loss, frame_lengths=frames, teacher=teacher, tail_rule=rule)
        timed(f"encoder_frame, {rule}", log_probs, loss, repeats)
    nbest, spans = torch.randint(1, V - 1, (B, N, L), generator=generator), lengths[:, None]
    posteriors = torch.full((B, N), 1 / N)
    timed(
        "encoder_sequence",
        log_probs,
        lambda q: encoder_sequence_loss(q, frames, nbest, spans.repeat(1, N), posteriors),
        repeats,
    )


def measure_decoder(sizes: Sizes, generator: torch.Generator, repeats: int) -> None:
    B, _, L, N, V = sizes
    lengths = torch.randint(L // 2, L + 1, (B,), generator=generator)
    tokens = torch.randint(1, V - 1, (B, L), generator=generator)
    masks = draw_masks(lengths, generator, L)
    logits = sharp_logits(generator, B, L, V + 1)
    timed("mlm", logits, lambda z: masked_lm_loss(z, tokens, masks, 0.1), repeats)
    ar_logits = sharp_logits(generator, B, L + 1, V)
    timed("attention", ar_logits, lambda z: attention_loss(z, tokens, lengths, V - 1, 0.1), repeats)
    dense = sharp_logits(generator, int((lengths + 1).sum()), V).log_softmax(-1)
    teacher = truncate_rows(dense, top_k=32, min_prob=1e-3)
    timed(
        "decoder_frame",
        class_log_probs(logits, V),
        lambda q: decoder_frame_loss(q, masks, lengths, teacher),
        repeats,
    )
    hypotheses = flatten_hypotheses(
        tokens[:, None].repeat(1, N, 1), lengths[:, None].repeat(1, N), torch.full((B, N), 1 / N)
    )
    all_masks = draw_masks(hypotheses.lengths, generator, L)
    timed(
        "decoder_sequence",
        sharp_logits(generator, B * N, L, V + 1),
        lambda z: decoder_sequence_loss(z, all_masks, hypotheses, B, V),
        repeats,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for sizes in (Sizes(16, 60, 20, 10, 32), Sizes(32, 150, 15, 10, 4233)):
        print(sizes)
        generator = torch.Generator().manual_seed(0)
        measure_encoder(sizes, generator, options.repeats)
        measure_decoder(sizes, generator, options.repeats)
