"""Batches hold what fits, every utterance once, in an order fixed by seed and epoch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdpipe.batching import length_buckets, pad_tokens, sorted_batches

lengths_lists = st.lists(st.integers(1, 400), min_size=1, max_size=60)


@given(lengths_lists, st.integers(100, 2000), st.integers(1, 20), st.integers(0, 5))
def test_every_utterance_once_and_no_batch_too_large(
    lengths: list[int], frames: int, most: int, epoch: int
) -> None:
    for batches in (
        length_buckets(lengths, frames, most, seed=1, epoch=epoch),
        sorted_batches(lengths, frames, most),
    ):
        assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
        for batch in batches:
            padded = max(lengths[i] for i in batch) * len(batch)
            assert len(batch) == 1 or (padded <= frames and len(batch) <= most)


def test_the_order_follows_seed_and_epoch() -> None:
    lengths = [50 + 7 * i % 97 for i in range(80)]
    first = length_buckets(lengths, 600, 64, seed=3, epoch=2)
    assert length_buckets(lengths, 600, 64, seed=3, epoch=2) == first
    assert length_buckets(lengths, 600, 64, seed=3, epoch=3) != first
    assert length_buckets(lengths, 600, 64, seed=4, epoch=2) != first


def test_batches_waste_little_on_padding() -> None:
    lengths = [100 + i for i in range(300)]
    batches = length_buckets(lengths, 4000, 64, seed=0, epoch=0)
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    assert padded < 1.15 * sum(lengths)


def test_sorted_batches_start_with_the_longest() -> None:
    assert sorted_batches([5, 9, 7], 100, 2) == [[1, 2], [0]]


@pytest.mark.parametrize("sequences", [[[1, 2, 3], [], [4]], [[]], []])
def test_pad_tokens(sequences: list[list[int]]) -> None:
    padded, lengths = pad_tokens(sequences)
    assert lengths.tolist() == [len(s) for s in sequences]
    assert padded.shape[1] >= 1
    for row, sequence in zip(padded, sequences, strict=True):
        assert row[: len(sequence)].tolist() == sequence
        assert not torch.any(row[len(sequence) :])
