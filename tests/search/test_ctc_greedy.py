from __future__ import annotations

import itertools
import math
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from kdpipe.search.ctc_greedy import GreedyHypothesis, ctc_greedy

from .models import load_peer


def greedy_by_hand(log_probs: torch.Tensor) -> GreedyHypothesis:
    best = [(int(frame.argmax()), float(frame.max())) for frame in log_probs]
    runs = [(token, [p for _, p in run]) for token, run in itertools.groupby(best, lambda x: x[0])]
    spoken = [(token, max(run)) for token, run in runs if token != 0]
    return GreedyHypothesis(
        tuple(token for token, _ in spoken),
        tuple(float(np.exp(peak)) for _, peak in spoken),
        math.fsum(p for _, p in best),
    )


@given(st.lists(st.integers(0, 12), min_size=1, max_size=4), st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_equals_the_definition(lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(len(lengths), 12, 3, generator=generator).log_softmax(-1)
    found = ctc_greedy(log_probs, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        expected = greedy_by_hand(log_probs[row, :length])
        assert found[row].tokens == expected.tokens
        assert found[row].confidences == pytest.approx(expected.confidences)
        assert found[row].score == pytest.approx(expected.score, abs=1e-4)


def test_equals_the_peer(shared: Path) -> None:
    model, encoded, expected = load_peer(shared / "golden" / "espnet-maskctc")
    with torch.no_grad():
        found = ctc_greedy(model.ctc_log_probs(encoded.hidden), encoded.lengths)
    for ours, utterance in zip(found, expected, strict=True):
        theirs = utterance["ctc_greedy"]
        assert list(ours.tokens) == [item["token"] for item in theirs]
        assert ours.confidences == pytest.approx([item["confidence"] for item in theirs], abs=1e-4)


def test_no_frames_and_all_blank_are_empty() -> None:
    assert ctc_greedy(torch.zeros(0, 5, 3), torch.zeros(0, dtype=torch.int64)) == []
    nothing = ctc_greedy(torch.zeros(2, 0, 3), torch.tensor([0, 0]))
    assert nothing == [GreedyHypothesis((), (), 0.0)] * 2
    certain = torch.tensor([0.98, 0.01, 0.01]).log().expand(1, 5, 3)
    assert ctc_greedy(certain, torch.tensor([5]))[0].tokens == ()


def test_a_run_ends_at_the_end_of_its_utterance() -> None:
    frames = torch.tensor([[0.1, 0.9], [0.05, 0.95]]).log()
    found = ctc_greedy(torch.stack([frames, frames.flip(0)]), torch.tensor([1, 2]))
    assert found[0].confidences == pytest.approx([0.9])
    assert found[1].confidences == pytest.approx([0.95])
