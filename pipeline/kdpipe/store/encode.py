"""Dense posteriors to sparse ones, and log-probabilities to bytes and back.

A row keeps the classes with p >= min_prob, at most top_k, at least the likeliest; what the others
weigh together is its tail. Codec `log8` writes, for each class but the first, how many steps its
log-probability lies below the first's: codes q give

    log p_i = log(1 - tail) - step * q_i - log(sum_j exp(-step * q_j)),   q_1 = 0,

so a row is always a distribution, the likeliest class costs nothing, and rounding each ratio to
half a step bounds the error of every log-probability by one step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.errors import ConfigError, DataError
from kdpipe.store.schema import SparsePosterior, StoreHeader

__all__ = [
    "EMPTY_POSTERIOR",
    "check_codec",
    "decode_log8",
    "encode_log8",
    "kl_to_stored",
    "sparsify",
]

MAX_CODE = 255
SMALLEST_TAIL = 6e-8
"""The smallest log-tail below 0 that half precision can hold: a tail of 1 would leave no mass."""

EMPTY_POSTERIOR = SparsePosterior(
    np.zeros(0, np.uint8), np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.float32)
)
"""No rows: the token posteriors of an utterance without reference."""


def check_codec(header: StoreHeader) -> None:
    """Raise `ConfigError` when codec `log8` cannot span the floor the header asks for."""
    if header.codec != "log8" or header.top_k == 1:
        return
    reach = MAX_CODE * header.step
    if header.min_prob <= 0 or -np.log(header.min_prob) > reach:
        raise ConfigError(
            "store",
            "min_prob",
            header.min_prob,
            f"one byte in steps of {header.step:g} nat reaches down to p = {np.exp(-reach):.2g}",
            "Raise min_prob or the step, or take the codec fp16",
        )


def sparsify(log_probs: NDArray[np.floating[Any]], top_k: int, min_prob: float) -> SparsePosterior:
    """Keep the likely classes of each row of `log_probs` (n, V), natural logs, normalised.

    Ties go to the lower class id. Raises `DataError` when a row is NaN or no distribution.
    """
    dense = np.asarray(log_probs, dtype=np.float32)
    probabilities = np.exp(dense)
    _check_normalised(probabilities)
    rows, ids = np.nonzero(_candidates(dense, top_k, min_prob))
    order = np.lexsort((-dense[rows, ids], rows))
    rows, ids = rows[order], ids[order]
    starts = np.searchsorted(rows, np.arange(len(dense)))
    kept = np.arange(len(rows)) - starts[rows] < top_k
    rows, ids = rows[kept], ids[kept]
    values = dense[rows, ids]
    probabilities[rows, ids] = 0.0
    counts = np.bincount(rows, minlength=len(dense))
    width = np.uint8 if top_k <= np.iinfo(np.uint8).max else np.uint16
    tail = np.minimum(probabilities.sum(axis=1, dtype=np.float32), np.float32(1.0))
    return SparsePosterior(counts.astype(width), ids.astype(np.int32), values, tail)


def _candidates(dense: NDArray[np.float32], top_k: int, min_prob: float) -> NDArray[np.bool_]:
    """Classes above the floor; without a floor, those not below the row's k-th; always the best."""
    if not len(dense):
        return np.zeros(dense.shape, np.bool_)
    if min_prob > 0:
        mask = dense >= np.float32(np.log(min_prob))
    else:
        mask = np.isfinite(dense)
        if top_k < dense.shape[1]:
            mask &= dense >= np.partition(dense, -top_k, axis=1)[:, -top_k, None]
    mask[np.arange(len(dense)), dense.argmax(axis=1)] = True
    return mask


def _check_normalised(probabilities: NDArray[np.float32]) -> None:
    off = np.abs(probabilities.sum(axis=1, dtype=np.float64) - 1.0)
    if len(off) and not off.max() < 1e-2:
        worst = int(np.nanargmax(np.where(np.isnan(off), np.inf, off)))
        raise DataError(
            f"posterior row {worst}",
            f"probabilities sum to {1 + off[worst]:g} or so, not 1",
            "Pass natural-log probabilities: the output of a log-softmax",
        )


def encode_log8(posterior: SparsePosterior, step: float) -> NDArray[np.uint8]:
    """The codes of every class but each row's first: steps below the first's log-probability."""
    starts = _row_starts(posterior.counts)
    first = np.repeat(posterior.log_probs[starts], posterior.counts)
    codes = np.rint((first - posterior.log_probs) / np.float32(step))
    rest = np.ones(len(codes), np.bool_)
    rest[starts] = False
    clipped: NDArray[np.uint8] = np.clip(codes[rest], 0, MAX_CODE).astype(np.uint8)
    return clipped


def decode_log8(
    counts: NDArray[np.integer[Any]],
    codes: NDArray[np.uint8],
    log_tail: NDArray[np.float32],
    step: float,
) -> NDArray[np.float32]:
    """Log-probabilities of all rows from `encode_log8`'s codes and the logs of the tails.

    Most rows have a single class and so no codes: only the others are summed over.
    """
    starts = _row_starts(counts)
    several = np.flatnonzero(counts > 1)
    below = codes * np.float32(-step)
    norms = np.log(-np.expm1(log_tail))
    if len(several):
        weights = np.add.reduceat(np.exp(below), starts[several] - several)
        norms[several] -= np.log1p(weights)
    decoded = np.empty(len(codes) + len(starts), np.float32)
    decoded[starts] = norms
    rest = np.ones(len(decoded), np.bool_)
    rest[starts] = False
    decoded[rest] = below + np.repeat(norms[several], counts[several].astype(np.int64) - 1)
    return decoded


def _row_starts(counts: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    starts = np.cumsum(counts, dtype=np.int64)
    starts -= counts
    return starts


def kl_to_stored(
    log_probs: NDArray[np.floating[Any]], stored: SparsePosterior
) -> NDArray[np.float64]:
    """KL(dense || stored) of each row in nats, the tail spread evenly over the unlisted classes.

    `log_probs` (n, V) are the dense natural-log posteriors of the same rows.
    """
    dense = np.asarray(log_probs, dtype=np.float64)
    unlisted = dense.shape[1] - stored.counts.astype(np.int64)
    with np.errstate(divide="ignore"):
        spread = np.log(stored.tail.astype(np.float64)) - np.log(np.maximum(unlisted, 1))
    model = np.repeat(np.maximum(spread, -100.0)[:, None], dense.shape[1], axis=1)
    model[np.repeat(np.arange(len(dense)), stored.counts), stored.ids] = stored.log_probs
    gaps = np.where(np.isfinite(dense), dense - model, 0.0)
    divergence: NDArray[np.float64] = (np.exp(dense) * gaps).sum(axis=1)
    return divergence
