"""Decoder losses and the drawing of masks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdpipe.losses import (
    apply_masks,
    attention_inputs,
    attention_loss,
    attention_targets,
    draw_masks,
    masked_lm_loss,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reference_smoothed_kl(log_probs: Tensor, target: int, smoothing: float) -> float:
    loss = 0.0
    for c, q in enumerate(log_probs.tolist()):
        p = 1 - smoothing if c == target else smoothing / (len(log_probs) - 1)
        loss += p * (math.log(p) - q) if p > 0 else 0.0
    return loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_masked_lm_loss_equals_the_loops(smoothing: float) -> None:
    logits = torch.randn(2, 3, 6, generator=seeded(1))
    tokens = torch.tensor([[1, 2, 3], [4, 1, 0]])
    masks = torch.tensor([[True, False, True], [False, True, False]])
    term = masked_lm_loss(logits, tokens, masks, smoothing)
    q = logits.log_softmax(dim=-1)
    for b in range(2):
        expected = sum(
            reference_smoothed_kl(q[b, i], int(tokens[b, i]), smoothing)
            for i in range(3)
            if masks[b, i]
        )
        assert float(term.total[b]) == pytest.approx(expected, abs=1e-5)
    assert term.units.tolist() == [2, 1]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_attention_loss_equals_the_loops(smoothing: float) -> None:
    logits = torch.randn(2, 4, 6, generator=seeded(2))
    tokens, lengths = torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([3, 1])
    term = attention_loss(logits, tokens, lengths, sos_eos_id=5, smoothing=smoothing)
    q = logits.log_softmax(dim=-1)
    for b, targets in enumerate([[1, 2, 3, 5], [4, 5]]):
        expected = sum(reference_smoothed_kl(q[b, i], c, smoothing) for i, c in enumerate(targets))
        assert float(term.total[b]) == pytest.approx(expected, abs=1e-5)
    assert term.units.tolist() == [4, 2]


def test_smoothed_loss_is_zero_at_the_smoothed_target() -> None:
    target = torch.full((1, 1, 5), 0.1 / 4)
    target[0, 0, 2] = 0.9
    term = masked_lm_loss(target.log(), torch.tensor([[2]]), torch.tensor([[True]]), 0.1)
    assert float(term.total) == pytest.approx(0.0, abs=1e-6)


def test_attention_inputs_and_targets_are_shifted_against_each_other() -> None:
    tokens, lengths = torch.tensor([[1, 2, 3], [4, 2, 2]]), torch.tensor([3, 1])
    assert attention_inputs(tokens, lengths, 9).tolist() == [[9, 1, 2, 3], [9, 4, 9, 9]]
    assert attention_targets(tokens, lengths, 9).tolist() == [[1, 2, 3, 9], [4, 9, 9, 9]]


@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=6), seed=st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_masks_lie_inside_the_sequences_and_repeat_under_a_seed(
    lengths: list[int], seed: int
) -> None:
    sizes = torch.tensor(lengths)
    masks = draw_masks(sizes, seeded(seed))
    assert masks.shape == (len(lengths), max(lengths))
    for row, length in zip(masks, lengths, strict=True):
        assert min(length, 1) <= int(row.sum()) <= length
        assert not row[length:].any()
    assert torch.equal(masks, draw_masks(sizes, seeded(seed)))


def test_mask_counts_and_positions_are_uniform() -> None:
    masks = draw_masks(torch.full((20000,), 4), seeded(3), longest=6)
    assert masks.shape == (20000, 6)
    counts = masks.sum(dim=1).bincount(minlength=5)[1:] / 20000
    torch.testing.assert_close(counts, torch.full((4,), 0.25), atol=0.02, rtol=0)
    positions = masks[:, :4].double().mean(dim=0)
    torch.testing.assert_close(positions, torch.full_like(positions, 0.625), atol=0.02, rtol=0)


def test_apply_masks_replaces_only_the_masked() -> None:
    tokens = torch.tensor([[1, 2, 3]])
    assert apply_masks(tokens, torch.tensor([[False, True, False]]), 9).tolist() == [[1, 9, 3]]


def test_half_precision_logits_give_float32_losses() -> None:
    logits = torch.randn(1, 3, 6, generator=seeded(4)).bfloat16()
    tokens, lengths = torch.tensor([[1, 2]]), torch.tensor([2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = attention_loss(logits, tokens, lengths, 5, 0.1).total
        masked = masked_lm_loss(logits[:, :2], tokens, torch.ones(1, 2, dtype=torch.bool)).total
    assert inside.dtype == masked.dtype == torch.float32
    torch.testing.assert_close(
        inside, attention_loss(logits.float(), tokens, lengths, 5, 0.1).total
    )


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[[1e4, -1e4, 0.0]]], requires_grad=True)
    term = masked_lm_loss(logits, torch.tensor([[1]]), torch.tensor([[True]]), 0.1)
    gradient = torch.autograd.grad(term.total.sum(), logits)[0]
    assert bool(term.total.isfinite().all())
    assert bool(gradient.isfinite().all())
