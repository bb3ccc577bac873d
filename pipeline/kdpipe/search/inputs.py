"""What a search may assume of a model and of encoder output, checked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kdpipe.errors import DataError, MismatchError
from kdpipe.models import CausalDecoder, Encoded, MaskedDecoder, RecognitionModel
from kdpipe.search.settings import check_lengths

__all__ = ["causal_decoder", "checked_lengths", "masked_decoder", "select_encoded"]


def causal_decoder(model: RecognitionModel) -> CausalDecoder:
    """The autoregressive decoder; MismatchError for a model of the other kind."""
    _require_evaluation(model)
    if not isinstance(model.decoder, CausalDecoder):
        raise MismatchError(
            "The kind of model",
            "autoregressive beam search",
            model.config.kind,
            "Use a teacher (kind ar), or decode this model in mode mask-ctc or ctc",
        )
    return model.decoder


def masked_decoder(model: RecognitionModel) -> MaskedDecoder:
    """The Mask-CTC decoder; MismatchError for a model of the other kind."""
    _require_evaluation(model)
    if not isinstance(model.decoder, MaskedDecoder):
        raise MismatchError(
            "The kind of model",
            "Mask-CTC search",
            model.config.kind,
            "Use a student (kind mask-ctc), or decode this model in mode ar or ctc",
        )
    return model.decoder


def checked_lengths(encoded: Encoded) -> list[int]:
    """Encoder frames of each utterance, none too long, all values finite.

    Raises UtteranceTooLongError and DataError.
    """
    lengths: list[int] = encoded.lengths.tolist()
    check_lengths(lengths)
    _require_finite(encoded.hidden)
    return lengths


def select_encoded(encoded: Encoded, utterances: Sequence[int]) -> Encoded:
    """Some utterances, padded no further than the longest of them needs."""
    rows = torch.tensor(utterances, dtype=torch.int64, device=encoded.lengths.device)
    lengths = encoded.lengths[rows]
    longest = int(lengths.max()) if len(utterances) else 0
    return Encoded(encoded.hidden[rows, :longest], lengths)


def _require_evaluation(model: RecognitionModel) -> None:
    if model.training:
        raise MismatchError(
            "The model's mode",
            "search, which needs evaluation mode",
            "training mode with dropout",
            "Call model.eval() first",
        )


def _require_finite(hidden: Float[Tensor, "B T d"]) -> None:
    if not bool(torch.isfinite(hidden).all()):
        raise DataError(
            "encoder output",
            "contains values that are not finite",
            "Check the audio and the model's weights for NaN and infinity",
        )
