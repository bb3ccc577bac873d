"""Two sparse posteriors of the same rows, side by side over the union of their classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.store.schema import SparsePosterior

__all__ = ["UnionRows", "kl_between", "mean_posterior", "union_rows"]

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class UnionRows:
    """Classes that any of m posteriors lists, by row and then class.

    `probabilities` (m, S): one that a posterior does not list has an equal share of its tail.
    `rest` (m, n): mass on the classes that none lists. `starts` (n,) where rows begin.
    """

    rows: NDArray[np.int64]
    ids: NDArray[np.int64]
    starts: NDArray[np.int64]
    probabilities: Doubles
    rest: Doubles


def union_rows(posteriors: tuple[SparsePosterior, ...], vocab_size: int) -> UnionRows:
    """Put posteriors of the same number of rows side by side."""
    count = len(posteriors[0])
    places = [_places(posterior, vocab_size) for posterior in posteriors]
    union = np.unique(np.concatenate(places))
    rows, ids = np.divmod(union, vocab_size)
    starts = np.searchsorted(rows, np.arange(count))
    shared = np.bincount(rows, minlength=count)
    probabilities = np.empty((len(posteriors), len(union)))
    rest = np.empty((len(posteriors), count))
    for number, (posterior, place) in enumerate(zip(posteriors, places, strict=True)):
        listed = posterior.counts.astype(np.int64)
        share = posterior.tail / np.maximum(vocab_size - listed, 1)
        probabilities[number] = share[rows]
        probabilities[number, np.searchsorted(union, place)] = np.exp(posterior.log_probs)
        rest[number] = np.maximum(vocab_size - shared, 0) * share
    return UnionRows(rows, ids, starts, probabilities, rest)


def _places(posterior: SparsePosterior, vocab_size: int) -> NDArray[np.int64]:
    rows = np.repeat(np.arange(len(posterior), dtype=np.int64), posterior.counts)
    return rows * vocab_size + posterior.ids


def kl_between(ours: SparsePosterior, theirs: SparsePosterior, vocab_size: int) -> Doubles:
    """KL(ours || theirs) of each row in nats; tails are spread evenly over unlisted classes."""
    if not len(ours):
        return np.zeros(0)
    union = union_rows((ours, theirs), vocab_size)
    divergence: Doubles = np.add.reduceat(_terms(*union.probabilities), union.starts)
    return divergence + _terms(*union.rest)


def _terms(p: Doubles, q: Doubles) -> Doubles:
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = p * (np.log(p) - np.log(np.maximum(q, 1e-30)))
    return np.where(p > 0, terms, 0.0)


def mean_posterior(
    posteriors: tuple[SparsePosterior, ...], vocab_size: int, top_k: int, min_prob: float
) -> SparsePosterior:
    """The mean of several posteriors row by row, cut to the likely classes as `sparsify` does."""
    if not len(posteriors[0]):
        return posteriors[0]
    union = union_rows(posteriors, vocab_size)
    mean = union.probabilities.mean(axis=0)
    order = np.lexsort((union.ids, -mean, union.rows))
    rows, ids, mean = union.rows[order], union.ids[order], mean[order]
    rank = np.arange(len(rows)) - union.starts[rows]
    kept = (rank < top_k) & ((mean >= min_prob) & (mean > 0) | (rank == 0))
    counts = np.bincount(rows[kept], minlength=len(posteriors[0]))
    lost = np.bincount(rows[~kept], mean[~kept], minlength=len(counts))
    tail = np.clip(union.rest.mean(axis=0) + lost, 0.0, 1.0)
    width: type[np.unsignedinteger[Any]] = np.uint8 if top_k < 2**8 else np.uint16
    return SparsePosterior(
        counts.astype(width),
        ids[kept].astype(np.int32),
        np.log(mean[kept]).astype(np.float32),
        tail.astype(np.float32),
    )
