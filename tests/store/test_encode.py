"""Sparsifying and the one-byte codec, against loops over rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.store.contract import dense_log_probs, make_header

from kdpipe.errors import ConfigError, DataError
from kdpipe.store.encode import check_codec, decode_log8, encode_log8, kl_to_stored, sparsify
from kdpipe.store.schema import SparsePosterior


def reference_rows(
    dense: NDArray[np.float32], top_k: int, min_prob: float
) -> list[list[tuple[int, float]]]:
    """What `sparsify` must keep, row by row: (class, log-probability)."""
    rows = []
    for row in dense:
        ranked = sorted(range(len(row)), key=lambda c: (-row[c], c))
        kept = [c for c in ranked[:top_k] if np.exp(row[c]) >= min_prob and row[c] > -np.inf]
        rows.append([(c, float(row[c])) for c in kept or ranked[:1]])
    return rows


def rows_of(posterior: SparsePosterior) -> list[list[tuple[int, float]]]:
    ends = np.cumsum(posterior.counts, dtype=np.int64)
    pairs = list(zip(posterior.ids.tolist(), posterior.log_probs.tolist(), strict=True))
    return [pairs[end - count : end] for end, count in zip(ends, posterior.counts, strict=True)]


@given(
    seed=st.integers(0, 2**16),
    rows=st.integers(0, 6),
    top_k=st.integers(1, 70),
    min_prob=st.sampled_from([0.0, 1e-3, 0.05, 0.9]),
)
def test_sparsify_keeps_the_likely_classes_and_the_exact_tail(
    seed: int, rows: int, top_k: int, min_prob: float
) -> None:
    dense = dense_log_probs(np.random.default_rng(seed), rows)
    sparse = sparsify(dense, top_k, min_prob)
    assert rows_of(sparse) == reference_rows(dense, top_k, min_prob)
    for row, kept, tail in zip(dense, rows_of(sparse), sparse.tail, strict=True):
        others = np.delete(row.astype(np.float64), [c for c, _ in kept])
        assert tail == pytest.approx(np.exp(others).sum(), rel=1e-5, abs=1e-12)


def test_ties_go_to_the_lower_class() -> None:
    dense = np.full((1, 8), np.log(1 / 8), np.float32)
    assert sparsify(dense, 3, 0.0).ids.tolist() == [0, 1, 2]
    assert sparsify(dense, 3, 1e-3).ids.tolist() == [0, 1, 2]


def test_impossible_classes_are_not_kept() -> None:
    dense = np.asarray([[0.0, -np.inf, -np.inf]], np.float32)
    sparse = sparsify(dense, 3, 0.0)
    assert (sparse.counts.tolist(), sparse.tail.tolist()) == ([1], [0.0])


@pytest.mark.parametrize("bad", [np.nan, 1.0, -5.0])
def test_what_is_no_distribution_is_refused(bad: float) -> None:
    dense = np.full((2, 4), np.log(0.25), np.float32)
    dense[1, 2] = bad
    with pytest.raises(DataError, match="row 1"):
        sparsify(dense, 4, 0.0)


@given(seed=st.integers(0, 2**16), step=st.sampled_from([1 / 32, 1 / 16]))
def test_log8_is_off_by_at_most_one_step_and_sums_to_one(seed: int, step: float) -> None:
    dense = dense_log_probs(np.random.default_rng(seed), 20)
    sparse = sparsify(dense, 32, 1e-3)
    log_tail = np.log(np.minimum(sparse.tail, np.float32(1 - 1e-7)))
    back = decode_log8(sparse.counts, encode_log8(sparse, step), log_tail, step)
    assert np.abs(back - sparse.log_probs).max() <= step
    starts = np.cumsum(sparse.counts, dtype=np.int64) - sparse.counts
    mass = np.add.reduceat(np.exp(back, dtype=np.float64), starts) + sparse.tail
    np.testing.assert_allclose(mass, 1.0, atol=1e-5)


def test_a_floor_beyond_one_byte_is_refused() -> None:
    check_codec(make_header(min_prob=1e-3))
    check_codec(make_header(min_prob=0.0, codec="fp16"))
    for floor in (0.0, 1e-4):
        with pytest.raises(ConfigError, match="min_prob"):
            check_codec(make_header(min_prob=floor))


def test_kl_against_a_loop() -> None:
    dense = dense_log_probs(np.random.default_rng(3), 5)
    sparse = sparsify(dense, 4, 1e-3)
    expected = []
    for row, kept, tail in zip(dense.astype(np.float64), rows_of(sparse), sparse.tail, strict=True):
        listed = dict(kept)
        spread = np.log(tail / (len(row) - len(kept)))
        expected.append(sum(np.exp(p) * (p - listed.get(c, spread)) for c, p in enumerate(row)))
    np.testing.assert_allclose(kl_to_stored(dense, sparse), expected, rtol=1e-5)
    assert (kl_to_stored(dense, sparsify(dense, 60, 0.0)) < 1e-6).all()
