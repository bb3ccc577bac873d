"""Model sizes: one frozen record says everything that shapes a recogniser.

Source of the named sizes: Table 2 of the paper (Gong, Zhou, Qian).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

from kdpipe.errors import ConfigError

__all__ = ["Kind", "ModelConfig", "SizeName", "size_by_name", "size_names"]

Kind = Literal["ar", "mask-ctc"]
EncoderKind = Literal["conformer", "transformer"]
Positions = Literal["relative", "relative-legacy", "absolute"]
Activation = Literal["swish", "relu"]
SizeName = Literal["L", "M", "S", "XS"]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of a `RecognitionModel`.

    `vocab_size` is V: blank, unk, ..., sos/eos; the mask class of a Mask-CTC decoder comes
    on top. `kernel` is the width of the Conformer's depthwise convolution (frames, odd).
    `decoder_heads` and `decoder_inner` of 0 mean: as in the encoder. `macaron`,
    `convolution`, `encoder`, `positions` and `activation` differ from their defaults only
    in models that come from elsewhere. Raises ConfigError for values that fit no model.
    """

    kind: Kind
    vocab_size: int
    dim: int
    heads: int
    inner: int
    encoder_layers: int = 12
    decoder_layers: int = 6
    kernel: int = 31
    dropout: float = 0.1
    positional_dropout: float = 0.1
    attention_dropout: float = 0.0
    feature_dim: int = 80
    decoder_heads: int = 0
    decoder_inner: int = 0
    encoder: EncoderKind = "conformer"
    positions: Positions = "relative"
    activation: Activation = "swish"
    macaron: bool = True
    convolution: bool = True

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise _error(self, name, f"not one of {', '.join(choices)}")
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise _error(self, name, "must be 1 or more")
        for name in ("encoder_layers", "decoder_layers"):
            if getattr(self, name) > MOST_LAYERS:
                raise _error(self, name, f"must be {MOST_LAYERS} or less")
        for name in ("dropout", "positional_dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise _error(self, name, "must be in [0, 1)")
        _check_relations(self)

    @property
    def output_classes(self) -> int:
        """Classes of the decoder: V, or V + 1 with the mask for Mask-CTC."""
        return self.vocab_size + (self.kind == "mask-ctc")


_CHOICES = {
    "kind": get_args(Kind),
    "encoder": get_args(EncoderKind),
    "positions": get_args(Positions),
    "activation": get_args(Activation),
}
# A model file may claim anything: this bounds the time to build what it claims.
MOST_LAYERS = 1000
_POSITIVE = ("dim", "heads", "inner", "encoder_layers", "decoder_layers", "kernel")


def _error(config: ModelConfig, key: str, problem: str) -> ConfigError:
    return ConfigError(
        "model", key, getattr(config, key), problem, "See the named sizes L, M, S, XS"
    )


def _check_relations(config: ModelConfig) -> None:
    if config.vocab_size < 3:
        raise _error(config, "vocab_size", "needs at least blank, unk and sos/eos")
    if config.feature_dim < 7:
        raise _error(config, "feature_dim", "must be 7 or more for the two convolutions")
    if config.kernel % 2 == 0:
        raise _error(config, "kernel", "must be odd, so that a frame is the middle of its window")
    if config.dim % config.heads:
        raise _error(config, "heads", f"must divide dim = {config.dim}")
    if config.decoder_heads < 0 or config.dim % (config.decoder_heads or config.heads):
        raise _error(config, "decoder_heads", f"must divide dim = {config.dim}")
    if config.dim % 2:
        raise _error(config, "dim", "must be even for the sinusoidal positions")
    if config.decoder_inner < 0:
        raise _error(config, "decoder_inner", "must be 0 (as the encoder) or more")
    if config.encoder == "transformer" and config.positions != "absolute":
        raise _error(config, "positions", "a Transformer encoder takes absolute positions")


_TABLE_2: dict[SizeName, tuple[int, int, int]] = {
    "L": (512, 8, 2048),
    "M": (256, 4, 2048),
    "S": (128, 4, 1024),
    "XS": (128, 4, 256),
}


def size_names() -> tuple[SizeName, ...]:
    """The sizes of Table 2, largest first."""
    return tuple(_TABLE_2)


def size_by_name(name: str, vocab_size: int, kind: Kind = "ar", **changes: object) -> ModelConfig:
    """The config of Table 2's size `name` with V = `vocab_size`; `changes` override fields.

    Raises ConfigError for a name that Table 2 does not have or a field that does not exist.
    """
    if name not in _TABLE_2:
        known = ", ".join(_TABLE_2)
        raise ConfigError("model", "size", name, "no such size", f"Known sizes: {known}")
    known_fields = {field.name for field in fields(ModelConfig)}
    for key, value in changes.items():
        if key not in known_fields:
            raise ConfigError("model", key, value, "no such key", f"Keys: {sorted(known_fields)}")
    dim, heads, inner = next(shape for size, shape in _TABLE_2.items() if size == name)
    config = ModelConfig(kind=kind, vocab_size=vocab_size, dim=dim, heads=heads, inner=inner)
    return replace(config, **changes)  # type: ignore[arg-type]
