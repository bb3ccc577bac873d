"""Small random models and encoder outputs for search tests, and the peer's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdpipe.models import Encoded, ModelConfig, RecognitionModel, build_model
from kdpipe.models.config import Kind


def tiny_model(
    kind: Kind = "ar", vocab_size: int = 12, seed: int = 0, sharpness: float = 3.0
) -> RecognitionModel:
    """A random model whose distributions are far from uniform, in evaluation mode."""
    torch.manual_seed(seed)
    config = ModelConfig(
        kind=kind,
        vocab_size=vocab_size,
        dim=16,
        heads=2,
        inner=24,
        encoder_layers=1,
        decoder_layers=2,
        kernel=3,
    )
    model = build_model(config)
    with torch.no_grad():
        model.ctc.ctc_lo.weight *= sharpness
        model.decoder.output_layer.weight *= sharpness
    return model.eval()


def random_encoded(*lengths: int, seed: int = 0, dim: int = 16) -> Encoded:
    """Random encoder frames; garbage in the padding, which nothing may read."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(len(lengths), max(lengths, default=0), dim, generator=generator)
    for row, length in enumerate(lengths):
        hidden[row, length:] = 1000.0
    return Encoded(hidden, torch.tensor(lengths, dtype=torch.int64))


def alone(encoded: Encoded, row: int) -> Encoded:
    length = int(encoded.lengths[row])
    return Encoded(encoded.hidden[row : row + 1, :length], encoded.lengths[row : row + 1])


def load_peer(folder: Path) -> tuple[RecognitionModel, Encoded, list[dict[str, Any]]]:
    """The peer's decoder and CTC head, its encoder outputs in one padded batch, its results."""
    weights = torch.load(folder / "valid.acc.ave.pth", weights_only=True)
    model = RecognitionModel(_peer_config(weights, "mask-ctc" if "mask" in folder.name else "ar"))
    for part in ("decoder", "ctc"):
        prefix = f"{part}."
        own = {
            name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)
        }
        model.get_submodule(part).load_state_dict(own)
    expected = json.loads((folder / "expected.json").read_text())
    hidden = [
        torch.tensor(np.load(folder / f"{utterance['id']}.npz")["encoder_out"])
        for utterance in expected
    ]
    lengths = torch.tensor([len(frames) for frames in hidden])
    padded = torch.nn.utils.rnn.pad_sequence(hidden, batch_first=True)
    return model.eval(), Encoded(padded, lengths), expected


def _peer_config(weights: dict[str, torch.Tensor], kind: Kind) -> ModelConfig:
    """The decoder's sizes as the weights have them; the encoder is not used here."""
    vocab_size, dim = weights["ctc.ctc_lo.weight"].shape
    layers = {name.split(".")[2] for name in weights if name.startswith("decoder.decoders.")}
    return ModelConfig(
        kind=kind,
        vocab_size=vocab_size,
        dim=dim,
        heads=4,
        inner=weights["decoder.decoders.0.feed_forward.w_1.weight"].shape[0],
        encoder_layers=1,
        decoder_layers=len(layers),
    )
