"""SpecAugment (Park et al. 2019), over a whole padded batch at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["SpecAugmentSettings", "spec_augment"]


@dataclass(frozen=True)
class SpecAugmentSettings:
    """Counts and largest widths of the masks.

    time_width: frames, and never more than `time_fraction` of the utterance (the adaptive size
    of Park et al. 2020: a large time_width leaves the fraction alone to decide).
    frequency_width: mel bins. time_warp: the largest shift (frames) of the warped point, 0 for
    no warping.
    """

    time_masks: int = 2
    time_width: int = 40
    time_fraction: float = 1.0
    frequency_masks: int = 2
    frequency_width: int = 27
    time_warp: int = 0


def spec_augment(
    features: Float[Tensor, "B T F"],
    lengths: Int[Tensor, " B"],
    settings: SpecAugmentSettings,
    generator: torch.Generator,
) -> Float[Tensor, "B T F"]:
    """Warp, then mask bands of time and frequency with 0, the mean after CMVN.

    Every utterance draws its own masks: width uniform in 0..largest, start uniform over its own
    frames (or bins). `generator` lives on the CPU whatever the features' device, so one
    seed draws the same masks everywhere. Returns a new tensor; padding is left as it is.
    """
    warped = _warp_time(features, lengths, settings.time_warp, generator)
    batch, frames, bins = features.shape
    lengths = lengths.cpu()
    widths = (lengths * settings.time_fraction).long().clamp(max=settings.time_width)
    time = _draw_bands(lengths, widths, settings.time_masks, frames, generator)
    every_bin = torch.full((batch,), bins)
    largest = torch.full((batch,), min(settings.frequency_width, bins))
    frequency = _draw_bands(every_bin, largest, settings.frequency_masks, bins, generator)
    inside = torch.arange(frames)[None] < lengths[:, None]
    # Only the (B, T) and (B, F) halves travel to the device.
    time, frequency, inside = (part.to(features.device) for part in (time, frequency, inside))
    masked = (time[:, :, None] | frequency[:, None, :]) & inside[:, :, None]
    return warped.masked_fill(masked, 0.0)


def _draw_bands(
    sizes: Int[Tensor, " B"],
    largest: Int[Tensor, " B"],
    count: int,
    extent: int,
    generator: torch.Generator,
) -> Bool[Tensor, "B extent"]:
    """Union of `count` random bands inside 0..size-1, for every row."""
    shape = (len(sizes), count)
    widths = _draw_upto(largest[:, None].expand(shape), generator)
    starts = _draw_upto(sizes[:, None] - widths, generator)
    place = torch.arange(extent)
    bands = (place >= starts[..., None]) & (place < (starts + widths)[..., None])
    return bands.any(dim=1)


def _draw_upto(highest: Int[Tensor, "B n"], generator: torch.Generator) -> Int[Tensor, "B n"]:
    """Integers uniform in 0..highest, both included."""
    uniform = torch.rand(highest.shape, generator=generator, dtype=torch.float64)
    return (uniform * (highest + 1)).long()


def _warp_time(
    features: Float[Tensor, "B T F"],
    lengths: Int[Tensor, " B"],
    window: int,
    generator: torch.Generator,
) -> Float[Tensor, "B T F"]:
    """Move a random frame by up to `window` and stretch both sides linearly (section 2).

    Utterances under 2 * window + 3 frames stay as they are; lengths never change.
    """
    if window <= 0:
        return features
    lengths = lengths.cpu()
    # The warped point stays off both ends, or one side would have no frames to stretch.
    room = lengths - 3 - 2 * window
    centre = window + 1 + _draw_upto(room.clamp(min=0)[:, None], generator)
    shift = _draw_upto(torch.full_like(centre, 2 * window), generator) - window
    shift = torch.where((room >= 0)[:, None], shift, 0)
    source = _warped_positions(centre, centre + shift, lengths[:, None] - 1, features.shape[1])
    return _interpolate_frames(features, source.to(features.device))


def _warped_positions(
    centre: Int[Tensor, "B 1"], target: Int[Tensor, "B 1"], last: Int[Tensor, "B 1"], frames: int
) -> Float[Tensor, "B T"]:
    """Where each output frame is read from: 0 -> 0, target -> centre, last -> last."""
    place = torch.arange(frames, dtype=torch.float64)[None]
    before = place * centre / target.clamp(min=1)
    after = centre + (place - target) * (last - centre) / (last - target).clamp(min=1)
    inside = torch.where(place <= target, before, after)
    return torch.where(place <= last, inside, place)


def _interpolate_frames(
    features: Float[Tensor, "B T F"], source: Float[Tensor, "B T"]
) -> Float[Tensor, "B T F"]:
    lower = source.floor().long().clamp(0, features.shape[1] - 1)
    upper = (lower + 1).clamp(max=features.shape[1] - 1)
    weight = (source - lower).to(features.dtype)[..., None]
    index_lower = lower[..., None].expand(features.shape)
    index_upper = upper[..., None].expand(features.shape)
    return torch.lerp(features.gather(1, index_lower), features.gather(1, index_upper), weight)
