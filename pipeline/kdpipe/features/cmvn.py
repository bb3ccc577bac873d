"""Global cepstral mean and variance normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from jaxtyping import Float
from safetensors.torch import load, save
from torch import Tensor

from kdpipe.errors import DataError, InputNotFoundError
from kdpipe.files import atomic_write_bytes, json_digest

__all__ = ["Cmvn"]

# A band the recordings do not have (telephone speech) is constant but for rounding: dividing
# by its deviation would blow that up.
STD_FLOOR = 1e-2


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

    def digest(self) -> str:
        """Hex SHA-256 over the exact float32 values."""
        return json_digest({"mean": self.mean.tolist(), "std": self.std.tolist()})

    def save(self, path: Path) -> None:
        """Write a safetensors file with `mean` and `std`, atomically."""
        tensors = {"mean": self.mean.contiguous(), "std": self.std.contiguous()}
        atomic_write_bytes(path, save(tensors))

    @classmethod
    def load(cls, path: Path) -> Cmvn:
        """Read what `save` wrote.

        Raises `InputNotFoundError` or, for a damaged or other file, `DataError`.
        """
        if not path.is_file():
            raise InputNotFoundError(path, "CMVN file", "Run kdpipe prepare again")
        try:
            tensors = load(path.read_bytes())
            mean, std = tensors["mean"], tensors["std"]
        except (safetensors.SafetensorError, KeyError) as error:
            raise DataError(str(path), f"no CMVN ({error})", "Restore or remake it") from error
        if mean.shape != std.shape or not bool(torch.isfinite(mean + std).all() & (std > 0).all()):
            raise DataError(str(path), "means or deviations unusable", "Restore or remake it")
        return cls(mean.float(), std.float())
