"""Subsampled lengths against what the convolutions give, and the padding record."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdpipe.models import subsampled_lengths
from kdpipe.models.lengths import find_padding


@given(st.integers(7, 400))
def test_matches_two_unpadded_convolutions(frames: int) -> None:
    convolutions = nn.Sequential(nn.Conv2d(1, 1, 3, 2), nn.Conv2d(1, 1, 3, 2))
    with torch.no_grad():
        produced = convolutions(torch.zeros(1, 1, frames, 7)).shape[2]
    assert subsampled_lengths(frames) == produced


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=8))
def test_tensor_and_int_agree(lengths: list[int]) -> None:
    expected = [subsampled_lengths(length) for length in lengths]
    assert subsampled_lengths(torch.tensor(lengths)).tolist() == expected


def test_too_short_is_zero_and_first_is_seven() -> None:
    assert [subsampled_lengths(frames) for frames in range(8)] == [0] * 7 + [1]


def test_full_batch_has_no_padding() -> None:
    assert find_padding(torch.tensor([5, 5]), 5) is None


def test_padding_marks_real_frames_and_opens_a_key_for_empty_rows() -> None:
    padding = find_padding(torch.tensor([3, 0]), 3)
    assert padding is not None
    assert padding.valid.tolist() == [[True, True, True], [False, False, False]]
    assert padding.keys[:, 0, 0].tolist() == [[True, True, True], [True, False, False]]
    assert padding.rows.tolist() == [0, 1, 2]
