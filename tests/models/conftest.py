"""Tiny models for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kdpipe.models import ModelConfig, RecognitionModel, build_model
from kdpipe.models.config import Kind

TinyModel = Callable[..., RecognitionModel]


def tiny_config(kind: Kind = "ar", **changes: object) -> ModelConfig:
    shape: dict[str, object] = {
        "vocab_size": 11,
        "dim": 16,
        "heads": 2,
        "inner": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "kernel": 5,
        "feature_dim": 20,
    }
    return ModelConfig(kind=kind, **{**shape, **changes})  # type: ignore[arg-type]


def make_tiny(kind: Kind = "ar", seed: int = 0, **changes: object) -> RecognitionModel:
    torch.manual_seed(seed)
    model = build_model(tiny_config(kind, **changes))
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="session")
def tiny_model() -> TinyModel:
    """Builds a small model in evaluation mode; keyword arguments change its config."""
    return make_tiny
