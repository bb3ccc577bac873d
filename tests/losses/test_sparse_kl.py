"""Sparse distillation against dense loops, its gradients, and its behaviour at the extremes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdpipe.errors import MismatchError
from kdpipe.losses import (
    SparseRows,
    TailRule,
    class_log_probs,
    decoder_frame_loss,
    encoder_frame_loss,
    select_rows,
    sparse_cross_entropy,
    sparse_entropy,
    tempered_divergence,
    truncate_rows,
)

RULES: tuple[TailRule, ...] = ("bucket", "uniform", "renormalise", "drop")


def random_log_probs(seed: int, rows: int, classes: int, sharpness: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return logits.log_softmax(dim=1)


def reference_cross_entropy(
    student: Tensor, kept: dict[int, float], tail: float, rule: str
) -> float:
    """One row, class by class, with the tail as `rule` has it."""
    V = len(student)
    rest = [c for c in range(V) if c not in kept]
    scale = sum(kept.values()) if rule == "renormalise" else 1.0
    loss = -sum(p / scale * float(student[c]) for c, p in kept.items())
    if rule == "bucket" and rest and tail > 0:
        loss -= tail * math.log(sum(math.exp(float(student[c])) for c in rest))
    if rule == "uniform":
        loss -= sum(tail / len(rest) * float(student[c]) for c in rest)
    return loss


def reference_entropy(kept: dict[int, float], tail: float, left: int, rule: str) -> float:
    probs = list(kept.values())
    if rule == "renormalise":
        probs = [p / sum(probs) for p in probs]
    if rule == "bucket":
        probs.append(tail)
    if rule == "uniform":
        probs += [tail / max(left, 1)] * left
    return -sum(p * math.log(p) for p in probs if p > 0)


def rows_of(teacher: SparseRows) -> list[tuple[dict[int, float], float]]:
    answer = []
    start = 0
    for count, tail in zip(teacher.counts.tolist(), teacher.tail.tolist(), strict=True):
        entries = slice(start, start + count)
        probs = teacher.log_probs[entries].exp().tolist()
        answer.append((dict(zip(teacher.ids[entries].tolist(), probs, strict=True)), tail))
        start += count
    return answer


@pytest.mark.parametrize("rule", RULES)
@given(seed=st.integers(0, 2**31), top_k=st.integers(1, 9), floor=st.sampled_from([0.0, 0.01, 0.2]))
@settings(max_examples=25, deadline=None)
def test_cross_entropy_and_entropy_equal_the_loops(
    rule: TailRule, seed: int, top_k: int, floor: float
) -> None:
    teacher = truncate_rows(random_log_probs(seed, 5, 9), top_k, floor)
    student = random_log_probs(seed + 1, 8, 9)
    rows = torch.tensor([6, 0, 3, 7, 2])
    ours = sparse_cross_entropy(student, rows, teacher, rule)
    entropy = sparse_entropy(teacher, 9, rule)
    for i, (kept, tail) in enumerate(rows_of(teacher)):
        expected = reference_cross_entropy(student[rows[i]], kept, tail, rule)
        assert float(ours[i]) == pytest.approx(expected, abs=1e-9)
        expected = reference_entropy(kept, tail, 9 - len(kept), rule)
        assert float(entropy[i]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_every_class_kept_equals_the_dense_loss_and_gradient(rule: TailRule) -> None:
    P = random_log_probs(1, 6, 11)
    logits = random_log_probs(2, 6, 11).requires_grad_()
    sparse = sparse_cross_entropy(
        logits.log_softmax(dim=1), torch.arange(6), truncate_rows(P), rule
    )
    dense = -(P.exp() * logits.log_softmax(dim=1)).sum(dim=1)
    torch.testing.assert_close(sparse, dense)
    ours, theirs = (torch.autograd.grad(x.sum(), logits)[0] for x in (sparse, dense))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rule", RULES)
def test_gradients_pass_gradcheck(rule: TailRule) -> None:
    teacher = truncate_rows(random_log_probs(3, 4, 7), top_k=3)
    rows = torch.tensor([4, 1, 0, 2])

    def loss(logits: Tensor) -> Tensor:
        return sparse_cross_entropy(logits.log_softmax(dim=1), rows, teacher, rule)

    assert torch.autograd.gradcheck(loss, random_log_probs(4, 6, 7).requires_grad_())


@given(seed=st.integers(0, 2**31), top_k=st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_bucket_divergence_is_never_negative_and_zero_at_the_teacher(seed: int, top_k: int) -> None:
    P = random_log_probs(seed, 4, 9)
    teacher = truncate_rows(P, top_k)
    numbers = torch.arange(4)
    entropy = sparse_entropy(teacher, 9)
    other = sparse_cross_entropy(random_log_probs(seed + 1, 4, 9), numbers, teacher) - entropy
    same = sparse_cross_entropy(P, numbers, teacher) - entropy
    assert bool((other > -1e-12).all())
    torch.testing.assert_close(same, torch.zeros_like(same), atol=1e-12, rtol=0)


def reference_tempered(
    student: Tensor, kept: dict[int, float], tail: float, temperature: float
) -> float:
    """One row: both sides as lists over the kept classes and the bucket, then plain KL."""
    rest = [c for c in range(len(student)) if c not in kept]
    P = [*kept.values(), *([tail] if rest else [])]
    Q = [math.exp(float(student[c])) for c in kept]
    Q += [sum(math.exp(float(student[c])) for c in rest)] if rest else []
    flat_P, flat_Q = ([p ** (1 / temperature) for p in side] for side in (P, Q))
    P, Q = [p / sum(flat_P) for p in flat_P], [q / sum(flat_Q) for q in flat_Q]
    return temperature**2 * sum(p * math.log(p / q) for p, q in zip(P, Q, strict=True) if p > 0)


@given(
    seed=st.integers(0, 2**31),
    top_k=st.integers(1, 9),
    temperature=st.sampled_from([0.5, 1.0, 2.0, 5.0]),
)
@settings(max_examples=40, deadline=None)
def test_tempered_divergence_equals_the_lists(seed: int, top_k: int, temperature: float) -> None:
    teacher = truncate_rows(random_log_probs(seed, 5, 9), top_k)
    teacher = teacher._replace(tail=teacher.tail * torch.tensor([1, 1, 0, 1, 1]))
    student, numbers = random_log_probs(seed + 1, 7, 9), torch.tensor([6, 0, 3, 1, 4])
    actual = tempered_divergence(student, numbers, teacher, temperature)
    expected = [
        reference_tempered(student[number], kept, tail, temperature)
        for number, (kept, tail) in zip(numbers.tolist(), rows_of(teacher), strict=True)
    ]
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64))


@given(seed=st.integers(0, 2**31), top_k=st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_temperature_one_is_the_bucket_and_any_is_zero_at_the_teacher(
    seed: int, top_k: int
) -> None:
    P, numbers = random_log_probs(seed, 4, 9), torch.arange(4)
    teacher, Q = truncate_rows(P, top_k), random_log_probs(seed + 1, 4, 9)
    bucket = sparse_cross_entropy(Q, numbers, teacher) - sparse_entropy(teacher, 9)
    torch.testing.assert_close(tempered_divergence(Q, numbers, teacher, 1.0), bucket)
    copy = tempered_divergence(P, numbers, teacher, 3.0)
    torch.testing.assert_close(copy, torch.zeros_like(copy), atol=1e-12, rtol=0)


@pytest.mark.parametrize("top_k", [3, 6])
def test_tempered_gradients_pass_gradcheck_and_stay_finite(top_k: int) -> None:
    teacher, numbers = truncate_rows(random_log_probs(1, 3, 6), top_k), torch.tensor([2, 0, 1])
    logits = random_log_probs(2, 3, 6).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: tempered_divergence(x.log_softmax(1), numbers, teacher, 2.0), logits
    )
    certain = torch.tensor([[80.0, 0, 0, 0, 0, 0]] * 3).requires_grad_()
    torch.autograd.backward(
        tempered_divergence(certain.log_softmax(1), numbers, teacher, 2.0).sum()
    )
    assert certain.grad is not None
    assert bool(certain.grad.isfinite().all())


def test_frame_losses_take_a_temperature_with_the_bucket_alone() -> None:
    P, Q = (random_log_probs(seed, 5, 6) for seed in (3, 4))
    teacher, lengths = truncate_rows(P, 2), torch.tensor([5])
    frames = encoder_frame_loss(Q.unsqueeze(0), lengths, teacher, temperature=2.0)
    rows = tempered_divergence(Q, torch.arange(5), teacher, 2.0)
    torch.testing.assert_close(frames.total, rows.sum().unsqueeze(0))
    masks, tokens = torch.tensor([[True, False, True, False]]), torch.tensor([4])
    masked = decoder_frame_loss(Q[:4].unsqueeze(0), masks, tokens, teacher, temperature=2.0)
    torch.testing.assert_close(masked.total, rows[[0, 2]].mean().unsqueeze(0))
    with pytest.raises(ValueError, match="bucket"):
        encoder_frame_loss(Q.unsqueeze(0), lengths, teacher, "uniform", 2.0)


@given(seed=st.integers(0, 2**31), shift=st.floats(-30, 30))
@settings(max_examples=20, deadline=None)
def test_order_of_classes_and_logit_shift_do_not_matter(seed: int, shift: float) -> None:
    teacher = truncate_rows(random_log_probs(seed, 1, 9), top_k=4)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    shuffled = teacher._replace(ids=teacher.ids[order], log_probs=teacher.log_probs[order])
    logits = random_log_probs(seed + 1, 1, 9)
    row = torch.tensor([0])
    torch.testing.assert_close(
        sparse_cross_entropy(logits, row, teacher),
        sparse_cross_entropy((logits + shift).log_softmax(dim=1), row, shuffled),
    )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("confident", [0, 3], ids=["on a kept class", "on a dropped class"])
def test_a_nearly_certain_student_gets_finite_bounded_gradients(
    rule: TailRule, confident: int
) -> None:
    teacher = SparseRows(
        counts=torch.tensor([2, 2]),
        ids=torch.tensor([0, 1, 0, 1]),
        log_probs=torch.tensor([0.9, 0.099, 0.9, 0.1]).log(),
        tail=torch.tensor([1e-3, 0.0]),
    )
    logits = torch.zeros(2, 5)
    logits[:, confident] = 300.0
    logits.requires_grad_()
    loss = sparse_cross_entropy(logits.log_softmax(dim=1), torch.arange(2), teacher, rule)
    gradient = torch.autograd.grad(loss.sum(), logits)[0]
    assert bool(loss.isfinite().all())
    assert bool(gradient.isfinite().all())
    assert float(gradient.abs().max()) <= 1.001


def test_bucket_gradient_is_exact_where_one_minus_the_sum_would_cancel() -> None:
    """float32 cannot hold 1 - 1e-12, yet the tail must still be pulled up by its full mass."""
    teacher = SparseRows(
        torch.tensor([1]), torch.tensor([0]), torch.tensor([0.99]).log(), torch.tensor([0.01])
    )
    logits = torch.tensor([[27.6, 0.0, 0.0, 0.0]], requires_grad=True)
    loss = sparse_cross_entropy(logits.log_softmax(dim=1), torch.tensor([0]), teacher)
    gradient = torch.autograd.grad(loss.sum(), logits)[0]
    expected = torch.tensor([[0.01, -0.01 / 3, -0.01 / 3, -0.01 / 3]])
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)


def test_bucket_is_nearer_to_the_dense_gradient_than_renormalising() -> None:
    P = random_log_probs(5, 200, 50, sharpness=2.5)
    near = P + 0.3 * random_log_probs(6, 200, 50, sharpness=1.0)
    logits = near.requires_grad_()

    def gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss.mean(), logits)[0]

    def sparse(rule: TailRule) -> Tensor:
        teacher = truncate_rows(P, top_k=4)
        return gradient(
            sparse_cross_entropy(logits.log_softmax(dim=1), torch.arange(200), teacher, rule)
        )

    dense = gradient(-(P.exp() * logits.log_softmax(dim=1)).sum(dim=1))
    error = {rule: float((sparse(rule) - dense).norm() / dense.norm()) for rule in RULES}
    bias = {rule: float((sparse(rule) - dense).sum(dim=0).norm()) for rule in RULES}
    assert error["bucket"] < 0.5 * min(error["renormalise"], error["drop"])
    assert bias["bucket"] < 0.5 * min(bias["renormalise"], bias["drop"])


def test_encoder_frame_loss_sees_valid_frames_only() -> None:
    lengths = torch.tensor([3, 5])
    P = [random_log_probs(7, 3, 6), random_log_probs(8, 5, 6)]
    student = random_log_probs(9, 10, 6).view(2, 5, 6)
    term = encoder_frame_loss(student, lengths, truncate_rows(torch.cat(P)))
    expected = [
        sum(
            float(P[b][t, c].exp() * (P[b][t, c] - student[b, t, c]))
            for t in range(int(lengths[b]))
            for c in range(6)
        )
        for b in range(2)
    ]
    assert term.total.tolist() == pytest.approx(expected, abs=1e-5)
    assert term.units.tolist() == [3, 5]


def test_decoder_frame_loss_is_the_mean_over_masks_without_the_end_of_sentence() -> None:
    lengths = torch.tensor([2, 4])
    masks = torch.tensor([[False, True, False, False], [True, False, True, True]])
    P = [random_log_probs(10, 3, 6), random_log_probs(11, 5, 6)]
    student = random_log_probs(12, 8, 6).view(2, 4, 6)
    term = decoder_frame_loss(student, masks, lengths, truncate_rows(torch.cat(P)))
    for b in range(2):
        positions = masks[b].nonzero().flatten().tolist()
        divergence = [float((P[b][i].exp() * (P[b][i] - student[b, i])).sum()) for i in positions]
        assert float(term.total[b]) == pytest.approx(sum(divergence) / len(positions), abs=1e-5)
    assert term.units.tolist() == [1, 1]


def test_no_gradient_reaches_positions_that_do_not_count() -> None:
    student = random_log_probs(13, 10, 6).view(2, 5, 6).requires_grad_()
    lengths = torch.tensor([2, 5])
    teacher = truncate_rows(random_log_probs(14, 7, 6), top_k=2)
    loss = encoder_frame_loss(student, lengths, teacher).total.sum()
    gradient = torch.autograd.grad(loss, student)[0]
    assert not gradient[0, 2:].any()
    assert bool((gradient[1] != 0).any(dim=1).all())


def test_other_numbers_of_rows_are_refused() -> None:
    student = random_log_probs(15, 10, 6).view(2, 5, 6)
    teacher = truncate_rows(random_log_probs(16, 7, 6))
    with pytest.raises(MismatchError, match="8 here, 7 there"):
        encoder_frame_loss(student, torch.tensor([3, 5]), teacher)
    with pytest.raises(MismatchError, match="10 here, 7 there"):
        decoder_frame_loss(
            student, torch.ones(2, 5, dtype=torch.bool), torch.tensor([3, 5]), teacher
        )


def test_select_rows_keeps_whole_rows() -> None:
    teacher = truncate_rows(random_log_probs(17, 5, 8), min_prob=0.1)
    keep = torch.tensor([True, False, False, True, True])
    kept = rows_of(select_rows(teacher, keep))
    assert kept == [row for row, k in zip(rows_of(teacher), keep.tolist(), strict=True) if k]


def test_truncated_rows_hold_the_exact_tail_and_at_least_one_class() -> None:
    P = random_log_probs(18, 6, 10)
    teacher = truncate_rows(P, top_k=3, min_prob=0.99)
    assert teacher.counts.tolist() == [1] * 6
    torch.testing.assert_close(teacher.log_probs, P.amax(dim=1))
    torch.testing.assert_close(teacher.tail, 1 - P.amax(dim=1).exp())


@pytest.mark.parametrize("rule", RULES)
def test_autocast_and_half_precision_inputs_stay_float32(rule: TailRule) -> None:
    teacher = truncate_rows(random_log_probs(19, 4, 8).float(), top_k=3)
    logits = random_log_probs(20, 4, 9).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_probs = class_log_probs(logits, 8)
        loss = sparse_cross_entropy(log_probs, torch.arange(4), teacher, rule)
    assert log_probs.dtype == loss.dtype == torch.float32
    outside = sparse_cross_entropy(
        logits.float()[:, :8].log_softmax(dim=1), torch.arange(4), teacher, rule
    )
    torch.testing.assert_close(loss, outside)
    assert not torch.autograd.grad(loss.sum(), logits)[0][:, 8].any()


@pytest.mark.parametrize("rule", RULES)
def test_rows_made_in_inference_mode_can_be_learned_from(rule: TailRule) -> None:
    """A teacher run in the loop hands over inference tensors, which autograd may not save."""
    with torch.inference_mode():
        teacher = truncate_rows(random_log_probs(21, 4, 8), top_k=3)
    student = random_log_probs(22, 4, 8).requires_grad_()
    loss = sparse_cross_entropy(student, torch.arange(4), teacher, rule)
    assert bool(torch.autograd.grad(loss.sum(), student)[0].any())
