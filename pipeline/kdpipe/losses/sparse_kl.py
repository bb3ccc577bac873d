"""Frame-level distillation (Eq. 7 and 11) from sparse teacher rows to dense student log-probs.

A teacher row keeps a few classes and the exact mass of all others. Whatever is done with that
tail is the tail rule:

- `bucket` (default): the tail is one class on both sides, -r log(1 - sum Q over the kept);
- `uniform`: the tail is spread evenly over the classes that were not kept;
- `renormalise`: the kept probabilities are scaled to one; biases the gradient;
- `drop`: the tail is left out; biases the gradient.

With every class kept and no tail all four equal the dense loss.

A temperature (Hinton et al. 2015) flattens both sides over the same classes: those kept, and the
bucket as one more.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdpipe.errors import MismatchError
from kdpipe.losses.reduction import (
    UtteranceLoss,
    at_least_float32,
    length_mask,
    sum_by_utterance,
)

__all__ = [
    "SparseRows",
    "TailRule",
    "decoder_frame_loss",
    "encoder_frame_loss",
    "select_rows",
    "sparse_cross_entropy",
    "sparse_entropy",
    "tempered_divergence",
    "truncate_rows",
]

TailRule = Literal["bucket", "uniform", "renormalise", "drop"]


class SparseRows(NamedTuple):
    """R ragged teacher rows, flat: the classes of row 0, then of row 1, and so on.

    `counts` (R,) classes of each row; `ids` (N,) class numbers, unique within a row; `log_probs`
    (N,) nats; `tail` (R,) probability of all other classes together. Integers are int64.
    """

    counts: Int[Tensor, "R"]
    ids: Int[Tensor, "N"]
    log_probs: Float[Tensor, "N"]
    tail: Float[Tensor, "R"]


def encoder_frame_loss(
    student_log_probs: Float[Tensor, "B T V"],
    frame_lengths: Int[Tensor, "B"],
    teacher: SparseRows,
    tail_rule: TailRule = "bucket",
    temperature: float = 1.0,
) -> UtteranceLoss:
    """Eq. 7 on the CTC posteriors, blank included, over the valid frames; per frame.

    `teacher` holds one row per valid frame, utterance after utterance. The value is the KL
    divergence: Eq. 7 less the teacher's entropy, a constant, so that 0 is a perfect copy. With a
    `temperature` other than 1 it is `tempered_divergence`.

    Raises:
        MismatchError: the teacher has another number of frames than the student.
        ValueError: a temperature other than 1 with another tail rule than `bucket`.
    """
    valid = length_mask(frame_lengths, student_log_probs.shape[1])
    _check_rows("encoder frames of the batch", int(frame_lengths.sum()), teacher)
    total = _divergence_by_utterance(student_log_probs, valid, teacher, tail_rule, temperature)
    return UtteranceLoss(total, frame_lengths.to(total.dtype))


def decoder_frame_loss(
    student_log_probs: Float[Tensor, "B L V"],
    masks: Bool[Tensor, "B L"],
    lengths: Int[Tensor, "B"],
    teacher: SparseRows,
    tail_rule: TailRule = "bucket",
    temperature: float = 1.0,
) -> UtteranceLoss:
    """Eq. 11: KL divergence at the masked positions, divided by their number (units are 1).

    `student_log_probs` come from `class_log_probs` (mask class cut off); `teacher` holds length
    + 1 rows an utterance, the end of sentence last, which the student has no position for. The
    value is Eq. 11 less the teacher's entropy, `temperature` as in `encoder_frame_loss`.

    Raises:
        MismatchError: the teacher has another number of positions than the references.
        ValueError: a temperature other than 1 with another tail rule than `bucket`.
    """
    _check_rows("tokens of the batch, ends of sentence included", int((lengths + 1).sum()), teacher)
    rows_valid = length_mask(lengths + 1, masks.shape[1] + 1)
    kept = select_rows(teacher, F.pad(masks, (0, 1))[rows_valid])
    total = _divergence_by_utterance(student_log_probs, masks, kept, tail_rule, temperature)
    per_mask = total / masks.sum(dim=1).clamp(min=1)
    return UtteranceLoss(per_mask, torch.ones_like(per_mask))


def _check_rows(what: str, expected: int, teacher: SparseRows) -> None:
    if teacher.counts.shape[0] != expected:
        raise MismatchError(
            f"The number of {what}",
            expected,
            teacher.counts.shape[0],
            "The targets were made from other features or references: dump them again",
        )


def _divergence_by_utterance(
    student_log_probs: Float[Tensor, "B T V"],
    positions: Bool[Tensor, "B T"],
    teacher: SparseRows,
    tail_rule: TailRule,
    temperature: float,
) -> Float[Tensor, "B"]:
    B, T, V = student_log_probs.shape
    rows = positions.flatten().nonzero().flatten()
    dense = student_log_probs.reshape(B * T, V)
    if temperature == 1.0:
        cross_entropy = sparse_cross_entropy(dense, rows, teacher, tail_rule)
        per_row = cross_entropy - sparse_entropy(teacher, V, tail_rule)
    elif tail_rule == "bucket":
        per_row = tempered_divergence(dense, rows, teacher, temperature)
    else:
        raise ValueError(f"temperature {temperature} with tail rule {tail_rule}: give bucket")
    return sum_by_utterance(per_row, rows.div(T, rounding_mode="floor"), B)


def sparse_cross_entropy(
    student_log_probs: Float[Tensor, "P V"],
    rows: Int[Tensor, "R"],
    teacher: SparseRows,
    tail_rule: TailRule = "bucket",
) -> Float[Tensor, "R"]:
    """-sum_c P(c) log Q(c) in nats; teacher row i belongs to student row `rows[i]`.

    `student_log_probs` are normalised over their V classes. The bucket's log-mass is a logsumexp
    over the classes not kept, never 1 - sum, so it is exact where the student is nearly certain.
    """
    log_probs = at_least_float32(student_log_probs).contiguous()
    entry_rows = _entry_rows(teacher)
    probs = teacher.log_probs.to(log_probs.dtype).exp()
    # A copy: autograd may not save a tensor that was made in inference mode.
    tail = teacher.tail.to(log_probs.dtype, copy=True)
    if tail_rule == "bucket":
        kept, rest = _kept_and_rest(log_probs, rows, teacher.ids, entry_rows)
        return -_row_sum(probs * kept, entry_rows, teacher) - _tail_term(tail, rest)
    kept = log_probs.flatten()[rows[entry_rows] * log_probs.shape[1] + teacher.ids]
    if tail_rule == "renormalise":
        probs = probs / _row_sum(probs, entry_rows, teacher)[entry_rows]
    cross_entropy = -_row_sum(probs * kept, entry_rows, teacher)
    if tail_rule == "uniform":
        rest_sum = log_probs.sum(dim=1)[rows] - _row_sum(kept, entry_rows, teacher)
        return cross_entropy - tail / _classes_left(teacher, log_probs.shape[1]) * rest_sum
    return cross_entropy


def sparse_entropy(
    teacher: SparseRows, vocab_size: int, tail_rule: TailRule = "bucket"
) -> Float[Tensor, "R"]:
    """Entropy of the teacher's rows under a tail rule, nats: cross entropy less this is the KL.

    Under `drop` it is that of the kept part alone, so the difference may fall below zero.
    """
    entry_rows = _entry_rows(teacher)
    probs = teacher.log_probs.exp()
    if tail_rule == "renormalise":
        probs = probs / _row_sum(probs, entry_rows, teacher)[entry_rows]
    entropy = _row_sum(torch.special.entr(probs), entry_rows, teacher)
    if tail_rule in ("renormalise", "drop"):
        return entropy
    left = _classes_left(teacher, vocab_size)
    per_class: Tensor = torch.special.entr(teacher.tail)
    if tail_rule == "uniform":
        per_class = per_class + teacher.tail * left.to(teacher.tail.dtype).log()
    return entropy + per_class.masked_fill(teacher.counts >= vocab_size, 0.0)


def tempered_divergence(
    student_log_probs: Float[Tensor, "P V"],
    rows: Int[Tensor, "R"],
    teacher: SparseRows,
    temperature: float,
) -> Float[Tensor, "R"]:
    """temperature^2 KL(P' || Q') in nats, both raised to 1 / temperature and normalised again.

    P and Q are over the teacher's kept classes and the bucket as one class more, so nothing is
    assumed of how the tail is spread; with temperature 1 it is the bucket's divergence. The
    square keeps the gradient of the size that it has at 1 (Hinton et al. 2015, section 2.1).
    """
    log_probs = at_least_float32(student_log_probs).contiguous()
    entry_rows = _entry_rows(teacher)
    kept, rest = _kept_and_rest(log_probs, rows, teacher.ids, entry_rows)
    left = ~rest.isneginf()
    both = left & (teacher.tail > 0)
    tail = teacher.tail.to(log_probs.dtype).masked_fill(~both, 1.0).log()
    entries = teacher.log_probs.to(log_probs.dtype)
    wanted, wanted_rest = _tempered(entries, tail, both, entry_rows, temperature)
    rest = rest.masked_fill(~left, 0.0)
    found, found_rest = _tempered(kept, rest, left, entry_rows, temperature)
    in_kept = _row_sum(wanted.exp() * (wanted - found), entry_rows, teacher)
    in_bucket = (wanted_rest.exp() * (wanted_rest - found_rest)).masked_fill(~both, 0.0)
    return (in_kept + in_bucket) * temperature**2


def _tempered(
    entries: Float[Tensor, "N"],
    rest: Float[Tensor, "R"],
    has_rest: Bool[Tensor, "R"],
    entry_rows: Int[Tensor, "N"],
    temperature: float,
) -> tuple[Float[Tensor, "N"], Float[Tensor, "R"]]:
    """Log-probs over 1 / temperature, each row normalised over its entries and its bucket."""
    entries, rest = entries / temperature, rest / temperature
    bucket = rest.exp().masked_fill(~has_rest, 0.0)
    norm = bucket.index_add(0, entry_rows, entries.exp()).log()
    return entries - norm[entry_rows], rest - norm


def select_rows(teacher: SparseRows, keep: Bool[Tensor, "R"]) -> SparseRows:
    """The rows where `keep` is true, in order."""
    entries = keep.repeat_interleave(teacher.counts, output_size=teacher.ids.shape[0])
    return SparseRows(
        counts=teacher.counts[keep],
        ids=teacher.ids[entries],
        log_probs=teacher.log_probs[entries],
        tail=teacher.tail[keep],
    )


def truncate_rows(
    log_probs: Float[Tensor, "R V"], top_k: int | None = None, min_prob: float = 0.0
) -> SparseRows:
    """A dense teacher as sparse rows: at most `top_k` classes of at least `min_prob` each.

    The most probable class is always kept. The tail is summed over the classes left out.
    """
    dense = at_least_float32(log_probs)
    values, ids = dense.sort(dim=1, descending=True, stable=True)
    keep = values.exp() >= min_prob
    keep[:, 0] = True
    if top_k is not None:
        keep[:, top_k:] = False
    tail = values.exp().masked_fill(keep, 0.0).sum(dim=1)
    return SparseRows(keep.sum(dim=1), ids[keep], values[keep], tail)


def _entry_rows(teacher: SparseRows) -> Int[Tensor, "N"]:
    numbers = torch.arange(teacher.counts.shape[0], device=teacher.counts.device)
    return numbers.repeat_interleave(teacher.counts, output_size=teacher.ids.shape[0])


def _row_sum(
    values: Float[Tensor, "N"], entry_rows: Int[Tensor, "N"], teacher: SparseRows
) -> Float[Tensor, "R"]:
    return values.new_zeros(teacher.counts.shape[0]).index_add(0, entry_rows, values)


def _classes_left(teacher: SparseRows, vocab_size: int) -> Int[Tensor, "R"]:
    return (vocab_size - teacher.counts).clamp(min=1)


def _tail_term(tail: Float[Tensor, "R"], rest: Float[Tensor, "R"]) -> Float[Tensor, "R"]:
    """tail * rest, and 0 where every class was kept (rest is -inf) or there is no tail."""
    return tail * rest.masked_fill((tail <= 0) | rest.isneginf(), 0.0)


def _kept_and_rest(
    log_probs: Float[Tensor, "P V"],
    rows: Int[Tensor, "R"],
    ids: Int[Tensor, "N"],
    entry_rows: Int[Tensor, "N"],
) -> tuple[Float[Tensor, "N"], Float[Tensor, "R"]]:
    """Log-probs of each row's kept classes and the log-mass of its others; rows are distinct."""
    # torch leaves Function.apply unannotated.
    answer: tuple[Tensor, Tensor] = _KeptAndRest.apply(  # type: ignore[no-untyped-call]
        log_probs, rows, ids, entry_rows
    )
    return answer


class _KeptAndRest(torch.autograd.Function):
    """`_kept_and_rest` with its own gradient.

    Autograd through a masked logsumexp would keep two dense copies; the closed form keeps none:
    d rest / d log q_j = q_j / sum of the rest for a class not kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        log_probs: Float[Tensor, "P V"],
        rows: Int[Tensor, "R"],
        ids: Int[Tensor, "N"],
        entry_rows: Int[Tensor, "N"],
    ) -> tuple[Float[Tensor, "N"], Float[Tensor, "R"]]:
        dense = log_probs.index_select(0, rows)
        V = log_probs.shape[1]
        dense.view(-1).index_fill_(0, entry_rows * V + ids, -torch.inf)
        peak = dense.amax(dim=1, keepdim=True).clamp_(min=torch.finfo(dense.dtype).min)
        rest = dense.sub_(peak).exp_().sum(dim=1).log_() + peak.squeeze(1)
        flat = rows[entry_rows] * V + ids
        ctx.save_for_backward(log_probs, rows, flat, rest)
        return log_probs.reshape(-1)[flat], rest

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, kept_gradient: Float[Tensor, "N"], rest_gradient: Float[Tensor, "R"]
    ) -> tuple[Float[Tensor, "P V"], None, None, None]:
        log_probs, rows, flat, rest = ctx.saved_tensors
        shift, weight = (
            values.new_zeros(log_probs.shape[0]).index_copy_(0, rows, values).unsqueeze(1)
            for values in (rest.masked_fill(rest.isneginf(), 0.0), rest_gradient)
        )
        gradient = log_probs.sub(shift).exp_().mul_(weight)
        # Written over, not added: the product above means nothing for a kept class.
        gradient.view(-1).index_copy_(0, flat, kept_gradient)
        return gradient, None, None, None
