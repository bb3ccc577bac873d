"""CTC likelihoods against the enumeration of every alignment."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdpipe.errors import AlignmentError
from kdpipe.losses import ctc_loss, ctc_negative_log_likelihood, required_frames


def collapse(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(label for label, _ in itertools.groupby(path) if label != 0)


def enumerated_nll(log_probs: Tensor, tokens: tuple[int, ...]) -> float:
    """-log of the summed probability of all V^T paths that collapse to `tokens`."""
    T, V = log_probs.shape
    mass = sum(
        math.exp(sum(float(log_probs[t, c]) for t, c in enumerate(path)))
        for path in itertools.product(range(V), repeat=T)
        if collapse(path) == tokens
    )
    return -math.log(mass)


def random_log_probs(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*shape, generator=generator, dtype=torch.float64)).log_softmax(dim=-1)


def padded(sequences: list[tuple[int, ...]], width: int, fill: int) -> tuple[Tensor, Tensor]:
    rows = [list(s) + [fill] * (width - len(s)) for s in sequences]
    return torch.tensor(rows).unsqueeze(0), torch.tensor([[len(s) for s in sequences]])


@given(
    seed=st.integers(0, 2**31),
    frames=st.integers(3, 5),
    sequences=st.lists(st.lists(st.integers(1, 3), max_size=2).map(tuple), min_size=1, max_size=3),
)
@settings(max_examples=25, deadline=None)
def test_equals_the_enumeration_of_all_alignments(
    seed: int, frames: int, sequences: list[tuple[int, ...]]
) -> None:
    log_probs = random_log_probs(seed, 1, 5, 4)
    tokens, lengths = padded(sequences, 3, fill=3)
    nll = ctc_negative_log_likelihood(log_probs, torch.tensor([frames]), tokens, lengths)
    expected = [enumerated_nll(log_probs[0, :frames], s) for s in sequences]
    assert nll[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_likelihoods_of_all_sequences_sum_to_one() -> None:
    log_probs = random_log_probs(1, 1, 4, 3)
    sequences = sorted({collapse(p) for p in itertools.product(range(3), repeat=4)})
    tokens, lengths = padded(sequences, 4, fill=1)
    nll = ctc_negative_log_likelihood(log_probs, torch.tensor([4]), tokens, lengths)
    assert float(nll.neg().exp().sum()) == pytest.approx(1.0, abs=1e-9)


def test_gradient_by_log_probs_passes_gradcheck() -> None:
    """The inputs are free log-probs here: no log-softmax hides a missing term."""
    tokens, lengths = padded([(1, 1, 2), (2, 3), (), (3, 1, 3)], 3, fill=2)

    def loss(log_probs: Tensor) -> Tensor:
        return ctc_negative_log_likelihood(log_probs, torch.tensor([5]), tokens, lengths)

    assert torch.autograd.gradcheck(loss, random_log_probs(2, 1, 6, 4).requires_grad_())


def test_batch_equals_torch_and_each_utterance_alone() -> None:
    logits = random_log_probs(3, 3, 12, 7).float().requires_grad_()
    frames, lengths = torch.tensor([12, 9, 10]), torch.tensor([4, 2, 3])
    tokens = torch.tensor([[1, 2, 2, 5], [6, 1, 6, 6], [3, 3, 3, 0]])
    term = ctc_loss(logits.log_softmax(dim=-1), frames, tokens, lengths)
    theirs = F.ctc_loss(
        logits.log_softmax(dim=-1).transpose(0, 1), tokens, frames, lengths, reduction="none"
    )
    torch.testing.assert_close(term.total, theirs)
    ours, expected = (
        torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (term.total, theirs)
    )
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    assert term.units.tolist() == [4, 2, 3]
    for b in range(3):
        alone = ctc_loss(
            logits[b : b + 1, : frames[b]].log_softmax(dim=-1),
            frames[b : b + 1],
            tokens[b : b + 1, : lengths[b]],
            lengths[b : b + 1],
        )
        torch.testing.assert_close(alone.total[0], term.total[b])


def test_required_frames_counts_repeats_inside_the_length() -> None:
    tokens = torch.tensor([[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 3, 3]])
    assert required_frames(tokens, torch.tensor([4, 1, 4])).tolist() == [6, 1, 7]


def test_an_impossible_alignment_is_an_error_naming_the_rows() -> None:
    log_probs = random_log_probs(4, 2, 4, 4)
    tokens = torch.tensor([[1, 2, 3], [1, 1, 1]])
    with pytest.raises(AlignmentError, match="row 1") as caught:
        ctc_loss(log_probs, torch.tensor([4, 4]), tokens, torch.tensor([3, 3]))
    assert (caught.value.rows, caught.value.needed, caught.value.available) == ((1,), (5,), (4,))


def test_extreme_logits_stay_finite() -> None:
    logits = torch.full((1, 6, 4), -200.0)
    logits[..., 3] = 200.0
    logits.requires_grad_()
    term = ctc_loss(
        logits.log_softmax(dim=-1), torch.tensor([6]), torch.tensor([[1, 2]]), torch.tensor([2])
    )
    gradient = torch.autograd.grad(term.total.sum(), logits)[0]
    assert float(term.total.detach()) == pytest.approx(2400, rel=0.01)
    assert bool(gradient.isfinite().all())


def test_half_precision_under_autocast_is_computed_in_float32() -> None:
    log_probs = random_log_probs(5, 1, 6, 4).bfloat16()
    arguments = (torch.tensor([6]), torch.tensor([[1, 2]]), torch.tensor([2]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ctc_loss(log_probs, *arguments).total
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, ctc_loss(log_probs.float(), *arguments).total)
