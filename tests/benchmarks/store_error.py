"""What each way of keeping posteriors does to a student's loss and gradient.

The student is the teacher plus noise on the logits, of low rank as the logits are, on the odds of
blank, and a little on every class; scaled to a KL of 0.27 nat a frame ("mid-training") or 0.004
("near the end").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdpipe.store import SparsePosterior, sparsify
from kdpipe.store.encode import decode_log8, encode_log8

__all__ = ["METHODS", "KeptError", "kept_errors"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class KeptError:
    """Classes a row, and against the dense loss: mean |KL error| in nats, RMS error of the
    gradient relative to its RMS, and the bias of the mean gradient relative to its length."""

    classes: float
    kl: float
    gradient: float
    bias: float


def log8(dense: NDArray[np.float32], step: float = 1 / 32) -> SparsePosterior:
    """The store's default: p >= 1e-3, at most 32, one byte of `step`, float16 tail."""
    sparse = sparsify(dense, 32, 1e-3)
    with np.errstate(divide="ignore"):
        log_tail = np.minimum(np.log(sparse.tail), -6e-8).astype(np.float16).astype(np.float32)
    values = decode_log8(sparse.counts, encode_log8(sparse, step), log_tail, step)
    return SparsePosterior(sparse.counts, sparse.ids, values, np.exp(log_tail))


def top_k(dense: NDArray[np.float32], k: int) -> SparsePosterior:
    """Fixed top k in float16, with the tail."""
    sparse = sparsify(dense, k, 0.0)
    half = sparse.log_probs.astype(np.float16).astype(np.float32)
    return SparsePosterior(sparse.counts, sparse.ids, half, sparse.tail)


METHODS: dict[str, tuple[Callable[[NDArray[np.float32]], SparsePosterior], bool]] = {
    "p >= 1e-3, cap 32, tail class, 8 bits of 1/32 nat (default)": (log8, True),
    "p >= 1e-3, cap 32, tail class, exact": (lambda d: sparsify(d, 32, 1e-3), True),
    "top-16, tail class, uint16 + fp16": (lambda d: top_k(d, 16), True),
    "top-16 renormalised, uint16 + fp16": (lambda d: top_k(d, 16), False),
    "top-8 renormalised, uint16 + fp16": (lambda d: top_k(d, 8), False),
}


def kept_errors(
    dense: NDArray[np.float32], embedding: NDArray[np.float32], student_kl: float, seed: int = 0
) -> dict[str, KeptError]:
    """Errors of every method for a student `student_kl` nats a row away from the teacher.

    `dense` (n, V) log-probabilities; `embedding` (R, V) spans the low-rank noise.
    """
    teacher = np.exp(dense.astype(np.float64))
    log_student = _student(dense, embedding, student_kl, seed)
    student = np.exp(log_student)
    exact_kl = (teacher * (dense - log_student)).sum(axis=1)
    exact = student - teacher
    errors = {}
    for name, (keep, bucket) in METHODS.items():
        stored = keep(dense)
        kl, gradient = _loss(stored, log_student, bucket)
        off = gradient - exact
        errors[name] = KeptError(
            float(stored.counts.mean()),
            float(np.abs(kl - exact_kl).mean()),
            float(np.sqrt((off**2).sum() / (exact**2).sum())),
            float(np.linalg.norm(off.mean(axis=0)) / np.linalg.norm(exact.mean(axis=0))),
        )
    return errors


def _student(
    dense: NDArray[np.float32], embedding: NDArray[np.float32], student_kl: float, seed: int
) -> Floats:
    random = np.random.default_rng(seed)
    noise = 0.45 * random.normal(0, 1, (len(dense), len(embedding))) @ embedding
    noise += random.normal(0, 0.3, dense.shape)
    noise[:, 0] += random.normal(0, 3, len(dense))
    low, high = 0.0, 16.0
    for _ in range(30):
        scale = (low + high) / 2
        log_student = dense + scale * noise
        log_student -= np.log(np.exp(log_student).sum(axis=1, keepdims=True))
        kl = float((np.exp(dense) * (dense - log_student)).sum(axis=1).mean())
        low, high = (scale, high) if kl < student_kl else (low, scale)
    return log_student


def _loss(stored: SparsePosterior, log_student: Floats, bucket: bool) -> tuple[Floats, Floats]:
    """KL to the student and its gradient by the logits, rows at a time; the tail as one class,
    or, without `bucket`, left out and the rest renormalised."""
    n, vocabulary = log_student.shape
    target = np.zeros((n, vocabulary))
    rows = np.repeat(np.arange(n), stored.counts)
    target[rows, stored.ids] = np.exp(stored.log_probs.astype(np.float64))
    listed = target > 0
    tail = stored.tail.astype(np.float64) if bucket else np.zeros(n)
    target *= ((1 - tail) / target.sum(axis=1))[:, None]
    student = np.exp(log_student)
    rest = np.maximum(np.where(listed, 0.0, student).sum(axis=1), 1e-30)
    entropy = np.where(listed, target * np.log(np.where(listed, target, 1.0)), 0.0).sum(axis=1)
    cross = -np.where(listed, target * log_student, 0.0).sum(axis=1)
    tails = np.where(tail > 0, tail * (np.log(np.maximum(tail, 1e-300)) - np.log(rest)), 0.0)
    # d/dz of -sum p log q - r log(rest): q - p on listed classes, q - r q / rest on the others.
    share = (tail / rest)[:, None] * student
    gradient = student - np.where(listed, target, share)
    return entropy + cross + tails, gradient
