"""Sequence-level distillation against loops over hypotheses."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdpipe.losses import (
    apply_masks,
    ctc_loss,
    decoder_sequence_loss,
    draw_masks,
    encoder_sequence_loss,
    flatten_hypotheses,
    nbest_posteriors,
    usable_hypotheses,
)

TOKENS = torch.tensor([[[1, 2, 3], [1, 2, 2], [1, 2, 3]], [[2, 1, 1], [3, 3, 3], [0, 0, 0]]])
LENGTHS = torch.tensor([[3, 2, 3], [1, 3, 0]])
PRESENT = torch.tensor([[True, True, True], [True, True, False]])


def random_log_probs(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*shape, generator=generator)).log_softmax(dim=-1)


def test_duplicates_and_unalignable_hypotheses_are_left_out_and_counted() -> None:
    selection = usable_hypotheses(TOKENS, LENGTHS, torch.tensor([4, 4]), PRESENT)
    assert selection.usable.tolist() == [[True, True, False], [True, False, False]]
    assert (selection.duplicate, selection.unalignable, selection.empty) == (1, 1, 0)


def test_empty_hypotheses_are_left_out_and_padding_is_not_counted() -> None:
    lengths = torch.tensor([[3, 0, 3], [1, 0, 0]])
    selection = usable_hypotheses(TOKENS, lengths, torch.tensor([9, 9]), PRESENT)
    assert selection.usable.tolist() == [[True, False, False], [True, False, False]]
    assert (selection.empty, selection.unalignable, selection.duplicate) == (2, 0, 1)


def test_a_blank_is_no_label_but_padding_may_be_zero() -> None:
    tokens = torch.tensor([[[2, 0, 3], [2, 3, 0], [4, 0, 0]]])
    selection = usable_hypotheses(
        tokens, torch.tensor([[3, 2, 3]]), torch.tensor([9]), torch.ones(1, 3, dtype=torch.bool)
    )
    assert selection.usable.tolist() == [[False, True, False]]
    assert (selection.unalignable, selection.duplicate) == (2, 0)


def test_tokens_past_a_length_do_not_make_hypotheses_differ() -> None:
    tokens = torch.tensor([[[1, 2, 7], [1, 2, 8]]])
    selection = usable_hypotheses(
        tokens, torch.tensor([[2, 2]]), torch.tensor([9]), torch.ones(1, 2, dtype=torch.bool)
    )
    assert selection.usable.tolist() == [[True, False]]


@given(
    scores=st.lists(st.floats(-1e4, 0), min_size=1, max_size=6),
    usable=st.lists(st.booleans(), min_size=6, max_size=6),
    shift=st.floats(-100, 100),
)
@settings(max_examples=50, deadline=None)
def test_posteriors_are_normalised_over_the_usable(
    scores: list[float], usable: list[bool], shift: float
) -> None:
    taken = torch.tensor([usable[: len(scores)]])
    row = torch.tensor([scores], dtype=torch.float64)
    posteriors = nbest_posteriors(row, taken)
    assert not posteriors[~taken].any()
    assert float(posteriors.sum()) == pytest.approx(float(taken.any()), abs=1e-9)
    torch.testing.assert_close(nbest_posteriors(row + shift, taken), posteriors)


def test_posteriors_equal_equation_nine() -> None:
    scores = [-3.0, -3.5, -6.0]
    posteriors = nbest_posteriors(torch.tensor([scores]), torch.ones(1, 3, dtype=torch.bool))
    mass = sum(math.exp(s) for s in scores)
    assert posteriors[0].tolist() == pytest.approx([math.exp(s) / mass for s in scores])


def test_encoder_loss_equals_the_loop_over_hypotheses() -> None:
    log_probs, frames = random_log_probs(1, 2, 6, 5), torch.tensor([6, 4])
    usable = usable_hypotheses(TOKENS, LENGTHS, frames, PRESENT).usable
    posteriors = nbest_posteriors(random_log_probs(2, 2, 3), usable)
    term = encoder_sequence_loss(log_probs, frames, TOKENS, LENGTHS, posteriors)
    for b in range(2):
        total = units = 0.0
        for n in usable[b].nonzero().flatten().tolist():
            one, size = TOKENS[b : b + 1, n], LENGTHS[b : b + 1, n]
            nll = ctc_loss(log_probs[b : b + 1], frames[b : b + 1], one, size).total
            total += float(posteriors[b, n] * nll)
            units += float(posteriors[b, n] * size)
        assert float(term.total[b]) == pytest.approx(total, abs=1e-5)
        assert float(term.units[b]) == pytest.approx(units, abs=1e-5)


def test_an_utterance_without_usable_hypotheses_adds_nothing() -> None:
    log_probs = random_log_probs(3, 2, 6, 5).requires_grad_()
    posteriors = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    term = encoder_sequence_loss(log_probs, torch.tensor([2, 6]), TOKENS, LENGTHS, posteriors)
    gradient = torch.autograd.grad(term.total.sum(), log_probs)[0]
    assert float(term.total[0].detach()) == 0
    assert not gradient[0].any()
    assert bool(gradient.isfinite().all())


def test_decoder_loss_equals_the_loop_over_hypotheses_and_masks() -> None:
    usable = usable_hypotheses(TOKENS, LENGTHS, torch.tensor([9, 9]), PRESENT).usable
    posteriors = nbest_posteriors(random_log_probs(4, 2, 3), usable)
    hypotheses = flatten_hypotheses(TOKENS, LENGTHS, posteriors)
    assert hypotheses.utterances.tolist() == [0, 0, 1, 1]
    masks = draw_masks(hypotheses.lengths, torch.Generator().manual_seed(5), longest=3)
    assert bool((apply_masks(hypotheses.tokens, masks, 5)[masks] == 5).all())
    logits = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(6))
    term = decoder_sequence_loss(logits, masks, hypotheses, batch_size=2, vocab_size=5)
    expected = [0.0, 0.0]
    for h, (tokens, b) in enumerate(
        zip(hypotheses.tokens.tolist(), hypotheses.utterances.tolist(), strict=True)
    ):
        q = logits[h, :, :5].log_softmax(dim=-1)
        positions = masks[h].nonzero().flatten().tolist()
        nll = -sum(float(q[i, tokens[i]]) for i in positions)
        expected[b] += float(hypotheses.posteriors[h]) * nll / len(positions)
    assert term.total.tolist() == pytest.approx(expected, abs=1e-5)
    assert term.units.tolist() == [1, 1]


def test_half_precision_logits_give_float32_losses() -> None:
    posteriors = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    hypotheses = flatten_hypotheses(TOKENS, LENGTHS, posteriors)
    masks = draw_masks(hypotheses.lengths, torch.Generator().manual_seed(7), longest=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        decoder = decoder_sequence_loss(torch.randn(2, 3, 6).bfloat16(), masks, hypotheses, 2, 5)
        encoder = encoder_sequence_loss(
            random_log_probs(8, 2, 6, 5).bfloat16(),
            torch.tensor([6, 6]),
            TOKENS,
            LENGTHS,
            posteriors,
        )
    assert decoder.total.dtype == encoder.total.dtype == torch.float32


def test_a_batch_without_any_usable_hypothesis_gives_zero_and_trains_on() -> None:
    posteriors = torch.zeros(2, 3)
    hypotheses = flatten_hypotheses(TOKENS, LENGTHS, posteriors)
    masks = draw_masks(hypotheses.lengths, torch.Generator().manual_seed(8), longest=3)
    logits = torch.zeros(0, 3, 6, requires_grad=True)
    log_probs = random_log_probs(9, 2, 6, 5).requires_grad_()
    decoder = decoder_sequence_loss(logits, masks, hypotheses, 2, 5)
    encoder = encoder_sequence_loss(log_probs, torch.tensor([2, 6]), TOKENS, LENGTHS, posteriors)
    assert decoder.total.tolist() == encoder.total.tolist() == [0, 0]
    gradients = torch.autograd.grad((decoder.total + encoder.total).sum(), (logits, log_probs))
    assert not gradients[1].any()
