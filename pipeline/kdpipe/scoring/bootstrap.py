"""Bootstrap over utterances (Bisani and Ney 2004): intervals and comparisons of error rates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdpipe.errors import DataError

__all__ = ["Comparison", "compare_systems", "rate_interval"]

Counts = NDArray[np.int64]
SAMPLES = 2000
# Draws at once, so that large sets do not take memory by samples times utterances.
BLOCK_VALUES = 1 << 22


@dataclass(frozen=True)
class Comparison:
    """A second system against a first on the same utterances.

    difference: second minus first error rate (a fraction; below 0 the second is better). ci95:
    its 95% interval. p_value: two-sided, of there being no difference.
    """

    difference: float
    ci95: tuple[float, float]
    p_value: float


def rate_interval(
    errors: Counts, reference: Counts, seed: int = 0, samples: int = SAMPLES
) -> tuple[float, float]:
    """95% percentile interval of sum(errors) / sum(reference) over resampled utterances (N,)."""
    if not len(errors):
        return (0.0, 0.0)
    drawn = _resample(np.stack([errors, reference], axis=1), seed, samples)
    return _percentiles(drawn[:, 0] / np.maximum(drawn[:, 1], 1))


def compare_systems(
    first: Counts, second: Counts, reference: Counts, seed: int = 0, samples: int = 10_000
) -> Comparison:
    """Compare errors (N,) of two systems on the same utterances, resampled together.

    The p-value is twice the share of samples on the smaller side of 0; samples at 0 count for
    both sides, and one is added to both counts so that it is never 0.
    """
    if not len(first) == len(second) == len(reference) > 0:
        raise DataError("comparison", "not the same utterances", "Score both on one set")
    drawn = _resample(np.stack([second - first, reference], axis=1), seed, samples)
    differences = drawn[:, 0] / np.maximum(drawn[:, 1], 1)
    smaller = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return Comparison(
        difference=float((second - first).sum() / max(reference.sum(), 1)),
        ci95=_percentiles(differences),
        p_value=min(1.0, 2 * (smaller + 1) / (samples + 1)),
    )


def _percentiles(rates: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(rates, [2.5, 97.5])
    return float(low), float(high)


def _resample(columns: Counts, seed: int, samples: int) -> NDArray[np.float64]:
    """(samples, columns) sums over as many rows as there are, drawn with replacement."""
    generator = np.random.default_rng(seed)
    return np.concatenate(list(_blocks(columns.astype(np.float64), generator, samples)))


def _blocks(
    columns: NDArray[np.float64], generator: np.random.Generator, samples: int
) -> Iterator[NDArray[np.float64]]:
    rows = len(columns)
    size = max(1, BLOCK_VALUES // rows)
    for start in range(0, samples, size):
        drawn = generator.integers(rows, size=(min(size, samples - start), rows))
        yield columns[drawn].sum(axis=1)
