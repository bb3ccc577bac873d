"""The bound on a model's size, beside the models themselves."""

from __future__ import annotations

import pytest
import torch

from kdpipe.models import RecognitionModel, count_parameters, size_by_name
from kdpipe.models.bound import least_parameters


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kernel": 9999},
        {"macaron": False, "convolution": False},
        {"encoder": "transformer", "positions": "absolute", "decoder_inner": 40},
        {"feature_dim": 2000, "vocab_size": 3, "inner": 1},
    ],
)
@pytest.mark.parametrize("kind", ["ar", "mask-ctc"])
def test_the_bound_is_below_the_count_and_near_it(kind: str, changes: dict[str, object]) -> None:
    config = size_by_name("XS", **{"vocab_size": 400, "kind": kind, **changes})  # type: ignore[arg-type]
    with torch.device("meta"):
        parameters = count_parameters(RecognitionModel(config))
    assert least_parameters(config) <= parameters <= 1.2 * least_parameters(config)
