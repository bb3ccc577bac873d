from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdpipe.features.specaugment import SpecAugmentSettings, spec_augment

TIME_ONLY = SpecAugmentSettings(time_masks=1, time_width=10, frequency_masks=0)
FREQUENCY_ONLY = SpecAugmentSettings(time_masks=0, frequency_masks=1, frequency_width=8)
NONE = SpecAugmentSettings(time_masks=0, frequency_masks=0)


def augment(
    features: torch.Tensor, lengths: list[int], settings: SpecAugmentSettings, seed: int = 0
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spec_augment(features, torch.tensor(lengths), settings, generator)


def runs(masked: torch.Tensor) -> list[tuple[int, int]]:
    """(start, width) of the runs of True in a vector."""
    found: list[tuple[int, int]] = []
    for place in torch.nonzero(masked).flatten().tolist():
        if found and sum(found[-1]) == place:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((place, 1))
    return found


@given(
    st.integers(0, 10**6),
    st.lists(st.integers(1, 60), min_size=1, max_size=5),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_masks_are_bands_of_whole_frames_or_bins_inside_each_utterance(
    seed: int, lengths: list[int], time_masks: int, frequency_masks: int
) -> None:
    settings = SpecAugmentSettings(time_masks, 12, 1.0, frequency_masks, 9)
    ones = torch.ones(len(lengths), max(lengths), 80)
    result = augment(ones, lengths, settings, seed)
    for row, length in zip(result, lengths, strict=True):
        assert bool((row[length:] == 1).all())
        zero = row[:length] == 0
        frames, bins = zero.all(dim=1), zero.all(dim=0)
        assert bool((zero == (frames[:, None] | bins[None])).all())
        if not bool(zero.all()):
            assert len(runs(frames)) <= time_masks
            assert len(runs(bins)) <= frequency_masks
            assert int(frames.sum()) <= 12 * time_masks
            assert int(bins.sum()) <= 9 * frequency_masks


def test_the_input_is_left_alone_and_a_seed_repeats() -> None:
    features = torch.randn(3, 50, 80)
    before = features.clone()
    once = augment(features, [50, 40, 30], SpecAugmentSettings(), seed=3)
    assert torch.equal(features, before)
    assert torch.equal(once, augment(features, [50, 40, 30], SpecAugmentSettings(), seed=3))
    assert not torch.equal(once, augment(features, [50, 40, 30], SpecAugmentSettings(), seed=4))


@pytest.mark.parametrize("settings", [TIME_ONLY, FREQUENCY_ONLY])
def test_widths_and_starts_are_uniform(settings: SpecAugmentSettings) -> None:
    count, frames = 20000, 30
    result = augment(torch.ones(count, frames, 80), [frames] * count, settings)
    dimension = 1 if settings.time_masks else 2
    masked = (result == 0).all(dim=3 - dimension)
    widths = masked.sum(1)
    largest, size = (10, 30) if settings.time_masks else (8, 80)
    shares = torch.bincount(widths, minlength=largest + 1) / count
    torch.testing.assert_close(
        shares, torch.full((largest + 1,), 1 / (largest + 1)), rtol=0, atol=0.01
    )
    of_width_4 = masked[widths == 4].float().argmax(1)
    assert int(of_width_4.min()) == 0
    assert int(of_width_4.max()) == size - 4


def test_every_utterance_has_masks_of_its_own() -> None:
    masked = augment(torch.ones(50, 100, 80), [100] * 50, TIME_ONLY) == 0
    assert len({tuple(runs(row)) for row in masked.all(2)}) > 20


def test_adaptive_width_follows_each_length() -> None:
    settings = dataclasses.replace(TIME_ONLY, time_fraction=0.1, time_width=15)
    lengths = [20, 200]
    widest = [0, 0]
    for seed in range(200):
        masked = (augment(torch.ones(2, 200, 80), lengths, settings, seed) == 0).all(2)
        widest = [max(w, int(m.sum())) for w, m in zip(widest, masked, strict=True)]
    assert widest == [2, 15]


def test_without_masks_nothing_changes() -> None:
    features = torch.randn(2, 30, 80)
    assert torch.equal(augment(features, [30, 20], NONE), features)


def test_time_warp_moves_one_point_and_keeps_both_ends() -> None:
    settings = dataclasses.replace(NONE, time_warp=5)
    ramp = torch.arange(40.0)[None, :, None].expand(8, 40, 80)
    lengths = [40, 40, 40, 40, 40, 30, 12, 13]
    warped = augment(ramp, lengths, settings)[..., 0]
    for row, length in zip(warped, lengths, strict=True):
        inside = row[:length]
        assert float(inside[0]) == 0
        assert float(inside[-1]) == length - 1
        assert bool((inside.diff() > 0).all())
        assert torch.equal(row[length:], torch.arange(40.0)[length:])
        # Two straight lines: the slope changes at one place at most.
        assert int((inside.diff().diff().abs() > 1e-4).sum()) <= 2
        assert float((inside - torch.arange(float(length))).abs().max()) <= 5 + 1e-4
    assert not torch.equal(warped[0], torch.arange(40.0))
    assert torch.equal(warped[6], torch.arange(40.0))
