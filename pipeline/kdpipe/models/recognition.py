"""The whole recogniser: encoder, CTC head and one of the two decoders."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn

from kdpipe.models.config import ModelConfig
from kdpipe.models.decoder import CausalDecoder, MaskedDecoder
from kdpipe.models.encoder import Encoder
from kdpipe.models.initialise import initialise
from kdpipe.models.linear import linear

__all__ = ["CtcHead", "Encoded", "RecognitionModel", "build_model", "count_parameters"]


class Encoded(NamedTuple):
    """Encoder frames, 0 beyond each utterance's end, and how many are real."""

    hidden: Float[Tensor, "B T d"]
    lengths: Int[Tensor, "B"]


class CtcHead(nn.Module):
    """Linear layer to V classes, blank included (ESPnet's `ctc.ctc_lo`)."""

    def __init__(self, dim: int, vocab_size: int) -> None:
        super().__init__()
        self.ctc_lo = nn.Linear(dim, vocab_size)

    def forward(self, hidden: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        return linear(hidden, self.ctc_lo.weight, self.ctc_lo.bias)


class RecognitionModel(nn.Module):
    """Teacher (kind "ar") or Mask-CTC student (kind "mask-ctc"); see `ModelConfig`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder: CausalDecoder | MaskedDecoder
        if config.kind == "ar":
            self.decoder = CausalDecoder(config)
        else:
            self.decoder = MaskedDecoder(config)
        self.ctc = CtcHead(config.dim, config.vocab_size)

    def encode(self, features: Float[Tensor, "B T F"], lengths: Int[Tensor, "B"]) -> Encoded:
        """Encode features (CMVN applied); `lengths` in feature frames.

        Padding never changes a result; fewer than 7 frames give length 0.
        """
        return Encoded(*self.encoder(features, lengths))

    def ctc_logits(self, hidden: Float[Tensor, "*B d"]) -> Float[Tensor, "*B V"]:
        """CTC logits of each frame."""
        logits: Tensor = self.ctc(hidden)
        return logits

    def ctc_log_probs(self, hidden: Float[Tensor, "*B d"]) -> Float[Tensor, "*B V"]:
        """CTC log-posteriors of each frame, nats, always float32."""
        return self.ctc_logits(hidden).float().log_softmax(-1)

    def decoder_logits(
        self, encoded: Encoded, tokens_in: Int[Tensor, "B L"], lengths: Int[Tensor, "B"]
    ) -> Float[Tensor, "B L C"]:
        """Logits at every position of `tokens_in`, of which `lengths` are real.

        Autoregressive: the input is sos + y, causal, C = V. Mask-CTC: the input is y with
        masks, bidirectional, C = V + 1. Padding may be any id.
        """
        memory = self.decoder.project_memory(encoded.hidden, encoded.lengths)
        logits: Tensor = self.decoder(tokens_in, lengths, memory)
        return logits


def build_model(config: ModelConfig) -> RecognitionModel:
    """A freshly initialised model, in training mode; seed torch beforehand."""
    model = RecognitionModel(config)
    initialise(model)
    return model


def count_parameters(model: nn.Module) -> int:
    """Number of trained parameters (BatchNorm's running statistics are none)."""
    return sum(parameter.numel() for parameter in model.parameters())
