"""The total of Eq. 13: joint CTC/decoder loss plus weighted encoder and decoder distillation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

__all__ = ["TERMS", "DistillationWeights", "combine"]

TERMS = (
    "ctc",
    "mlm",
    "attention",
    "encoder_frame",
    "encoder_sequence",
    "decoder_frame",
    "decoder_sequence",
)


@dataclass(frozen=True)
class DistillationWeights:
    """The weights of Eq. 6 (`alpha`), 10 (`beta_*`) and 13 (`gamma_*`).

    The defaults train without a teacher. The paper's stage 1 has beta_frame 1, beta_sequence 0,
    gamma_encoder 0.5, gamma_decoder 0.3; stage 2 has 1, 1, 0.5, 0.5; alpha is 0.3.
    """

    alpha: float = 0.3
    beta_frame: float = 0.0
    beta_sequence: float = 0.0
    gamma_encoder: float = 0.0
    gamma_decoder: float = 0.0

    @property
    def coefficients(self) -> dict[str, float]:
        """What each term is multiplied with in the total."""
        return {
            "ctc": self.alpha,
            "mlm": 1.0 - self.alpha,
            "attention": 1.0 - self.alpha,
            "encoder_frame": self.gamma_encoder * self.beta_frame,
            "encoder_sequence": self.gamma_encoder * self.beta_sequence,
            "decoder_frame": self.gamma_decoder * self.beta_frame,
            "decoder_sequence": self.gamma_decoder * self.beta_sequence,
        }

    @property
    def needed(self) -> frozenset[str]:
        """The distillation terms with a weight: the others need not be computed."""
        return frozenset(name for name, value in self.coefficients.items() if value) & {
            "encoder_frame",
            "encoder_sequence",
            "decoder_frame",
            "decoder_sequence",
        }


def combine(
    terms: Mapping[str, Float[Tensor, ""]], weights: DistillationWeights
) -> dict[str, Float[Tensor, ""]]:
    """The terms and their weighted sum as `"total"`; every term is one of `TERMS`.

    A term whose weight is zero stays in the answer for the log and adds nothing to the gradient.

    Raises:
        KeyError: a term that carries weight is missing, or a name is unknown.
    """
    missing = (weights.needed | {"ctc"}) - terms.keys()
    unknown = terms.keys() - set(TERMS)
    if missing or unknown or ("mlm" in terms) == ("attention" in terms):
        raise KeyError(
            f"terms {sorted(terms)}: missing {sorted(missing)}, unknown {sorted(unknown)};"
            " exactly one of mlm and attention is needed"
        )
    coefficients = weights.coefficients
    weighted = [coefficients[name] * terms[name] for name in terms if coefficients[name]]
    total = weighted[0]
    for value in weighted[1:]:
        total = total + value
    return {**terms, "total": total}
