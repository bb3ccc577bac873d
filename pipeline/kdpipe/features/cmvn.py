"""Cepstral mean and variance normalisation: over the training set, or of each utterance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import safetensors
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from kdpipe.errors import DataError, InputNotFoundError
from kdpipe.files import atomic_write_bytes, json_digest

__all__ = ["AnyCmvn", "Cmvn", "UtteranceCmvn", "load_cmvn"]

# A band the recordings do not have (telephone speech) is constant but for rounding: dividing
# by its deviation would blow that up.
STD_FLOOR = 1e-2
# What ESPnet divides by at least; it keeps silence finite.
UTTERANCE_STD_FLOOR = 1e-20
UTTERANCE_VARIANCE = "utterance_variance"


@dataclass(frozen=True, eq=False)
class Cmvn:
    """Mean and standard deviation of every feature dimension over the training set."""

    mean: Float[Tensor, " F"]
    std: Float[Tensor, " F"]

    @classmethod
    def from_sums(
        cls, count: int, total: Float[Tensor, " F"], squares: Float[Tensor, " F"]
    ) -> Cmvn:
        """From float64 sums of x and x^2 over `count` frames; deviations are at least 0.01."""
        mean = total.double() / count
        variance = (squares.double() / count - mean**2).clamp(min=STD_FLOOR**2)
        return cls(mean.float(), variance.sqrt().float())

    def apply(self, features: Float[Tensor, "*batch F"]) -> Float[Tensor, "*batch F"]:
        """(features - mean) / std."""
        return (features - self.mean.to(features)) / self.std.to(features)

    @cached_property
    def _arrays(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self.mean.numpy(), (1.0 / self.std).numpy()

    def apply_array(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same for a numpy array (T, F)."""
        mean, scale = self._arrays
        normalised: NDArray[np.float32] = (features - mean) * scale
        return normalised

    def describe(self) -> str:
        """A name for people: equal only for equal values."""
        return f"global CMVN {self.digest()[:12]}"

    def digest(self) -> str:
        """Hex SHA-256 over the exact float32 values."""
        return json_digest({"mean": self.mean.tolist(), "std": self.std.tolist()})

    def save(self, path: Path) -> None:
        """Write a safetensors file with `mean` and `std`, atomically."""
        tensors = {"mean": self.mean.contiguous(), "std": self.std.contiguous()}
        atomic_write_bytes(path, save(tensors))


@dataclass(frozen=True)
class UtteranceCmvn:
    """Each utterance's own mean, and with `variance` its own deviation, taken out.

    As ESPnet's `utterance_mvn`: no statistics beyond the utterance.
    """

    variance: bool = False

    def apply(self, features: Float[Tensor, "T F"]) -> Float[Tensor, "T F"]:
        """features - their mean over time, divided by their deviation where asked."""
        if not len(features):
            return features
        centred = features - features.mean(0)
        if not self.variance:
            return centred
        return centred / centred.square().mean(0).sqrt().clamp(min=UTTERANCE_STD_FLOOR)

    def apply_array(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same for a numpy array (T, F)."""
        return np.asarray(self.apply(torch.from_numpy(features)).numpy())

    def describe(self) -> str:
        """A name for people."""
        return f"utterance CMVN ({'mean and variance' if self.variance else 'mean'})"

    def digest(self) -> str:
        """Hex SHA-256 over the kind."""
        return json_digest({"kind": "utterance", "variance": self.variance})

    def save(self, path: Path) -> None:
        """Write a safetensors file that says so, atomically."""
        atomic_write_bytes(path, save({UTTERANCE_VARIANCE: torch.tensor(self.variance)}))


AnyCmvn = Cmvn | UtteranceCmvn


def load_cmvn(path: Path) -> AnyCmvn:
    """Read what `save` of either kind wrote.

    Raises `InputNotFoundError` or, for a damaged or other file, `DataError`.
    """
    if not path.is_file():
        raise InputNotFoundError(path, "CMVN file", "Run kdpipe prepare again")
    try:
        tensors = load(path.read_bytes())
        if set(tensors) == {UTTERANCE_VARIANCE}:
            return UtteranceCmvn(bool(tensors[UTTERANCE_VARIANCE]))
        mean, std = tensors["mean"], tensors["std"]
    except (safetensors.SafetensorError, KeyError) as error:
        raise DataError(str(path), f"no CMVN ({error})", "Restore or remake it") from error
    if mean.shape != std.shape or not bool(torch.isfinite(mean + std).all() & (std > 0).all()):
        raise DataError(str(path), "means or deviations unusable", "Restore or remake it")
    return Cmvn(mean.float(), std.float())
