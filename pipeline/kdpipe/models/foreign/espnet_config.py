"""What an ESPnet2 `config.yaml` must say for its model to be one of ours.

Every key that shapes the computation is either understood or refused by name and value;
keys that only steer training are passed over. Defaults are ESPnet's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdpipe.errors import ConfigError
from kdpipe.features.audio import SAMPLE_RATE
from kdpipe.features.espnet_filterbank import WINDOWS, EspnetFilterbank
from kdpipe.features.filterbank import FEATURE_DIM, KaldiFilterbank
from kdpipe.features.kinds import Filterbank
from kdpipe.models.config import Kind, ModelConfig

__all__ = ["EspnetSettings", "read_settings"]

REMEDY = (
    "kdpipe reads Conformer and Transformer encoders with a Transformer or MLM decoder and CTC"
    " on log-mel features; export or train such a model"
)


@dataclass(frozen=True, slots=True)
class Key:
    """A key's default, and the values that are understood (None: any of the default's type)."""

    default: Any
    only: tuple[Any, ...] | None = None


ANY = Key(None)
TRANSFORMER = {
    "output_size": Key(256),
    "attention_heads": Key(4),
    "linear_units": Key(2048),
    "num_blocks": Key(6),
    "dropout_rate": Key(0.1),
    "positional_dropout_rate": Key(0.1),
    "attention_dropout_rate": Key(0.0),
    "input_layer": Key("conv2d", ("conv2d",)),
    "normalize_before": Key(True, (True,)),
    "concat_after": Key(False, (False,)),
    "positionwise_layer_type": Key("linear", ("linear",)),
    "positionwise_conv_kernel_size": ANY,
    "padding_idx": ANY,
    "interctc_layer_idx": ANY,
    "interctc_use_conditioning": Key(False, (False,)),
    "layer_drop_rate": ANY,
    "qk_norm": Key(False, (False,)),
    "use_flash_attn": ANY,
}
CONFORMER = {
    **TRANSFORMER,
    "macaron_style": Key(False),
    "rel_pos_type": Key("legacy", ("legacy", "latest")),
    "pos_enc_layer_type": Key("rel_pos", ("rel_pos", "legacy_rel_pos", "abs_pos")),
    "selfattention_layer_type": Key(
        "rel_selfattn", ("rel_selfattn", "legacy_rel_selfattn", "selfattn")
    ),
    "activation_type": Key("swish", ("swish", "relu")),
    "use_cnn_module": Key(True),
    "zero_triu": Key(False, (False,)),
    "cnn_module_kernel": Key(31),
    "stochastic_depth_rate": ANY,
    "ctc_trim": Key(False, (False,)),
    "max_pos_emb_len": Key(5000, (5000,)),
}
DECODER = {
    "attention_heads": Key(4),
    "linear_units": Key(2048),
    "num_blocks": Key(6),
    "dropout_rate": ANY,
    "positional_dropout_rate": ANY,
    "self_attention_dropout_rate": ANY,
    "src_attention_dropout_rate": ANY,
    "input_layer": Key("embed", ("embed",)),
    "use_output_layer": Key(True, (True,)),
    "normalize_before": Key(True, (True,)),
    "concat_after": Key(False, (False,)),
    "layer_drop_rate": ANY,
    "qk_norm": Key(False, (False,)),
    "use_flash_attn": ANY,
    "gradient_checkpoint_layers": ANY,
}
FRONTEND = {
    "fs": Key(SAMPLE_RATE, (SAMPLE_RATE, str(SAMPLE_RATE), "16k")),
    "n_fft": Key(512),
    "win_length": ANY,
    "hop_length": Key(128),
    "window": Key("hann", tuple(WINDOWS)),
    "center": Key(True),
    "pad_mode": Key("reflect", ("reflect",)),
    "normalized": Key(False, (False,)),
    "onesided": Key(True, (True,)),
    "n_mels": Key(80),
    "fmin": ANY,
    "fmax": ANY,
    "htk": Key(False, (False,)),
    "frontend_conf": ANY,
    "apply_stft": Key(True, (True,)),
}
NORMALISE = {
    "global_mvn": {
        "stats_file": ANY,
        "norm_means": Key(True),
        "norm_vars": Key(True),
        "eps": ANY,
    },
    "utterance_mvn": {
        "norm_means": Key(True, (True,)),
        "norm_vars": Key(False),
        "eps": ANY,
    },
}
TOP = {
    "model": Key("espnet", ("espnet", "maskctc")),
    "frontend": Key("default", ("default", None)),
    "normalize": Key("utterance_mvn", ("global_mvn", "utterance_mvn", None)),
    "preencoder": Key(None, (None,)),
    "encoder": Key("rnn", ("conformer", "transformer")),
    "postencoder": Key(None, (None,)),
    "token_type": Key("bpe", ("char", "bpe")),
    "preprocessor": Key("default", ("default",)),
    "separator": Key(None, (None,)),
    "speech_volume_normalize": Key(None, (None,)),
    "use_lang_prompt": Key(False, (False,)),
    "use_nlp_prompt": Key(False, (False,)),
}


@dataclass(frozen=True, slots=True)
class EspnetSettings:
    """A config as far as it matters here.

    `assumed_features` is True for models that take features computed beforehand, of which the
    config tells the size alone. `normalisation` is "global", "utterance" or "none"; `means` and
    `variances` say which of the two it adjusts. `has_symbols`: the texts of a "char" model had
    symbols of several characters that are one token.
    """

    model: ModelConfig
    filterbank: Filterbank
    assumed_features: bool
    normalisation: str
    means: bool
    variances: bool
    stats_file: str | None
    token_list: tuple[str, ...]
    token_type: str
    bpe_model: str | None
    has_symbols: bool
    version: str


def read_settings(config: Mapping[str, Any], where: str) -> EspnetSettings:
    """Understand a `config.yaml`, or raise ConfigError naming the key and value that stop it."""
    top = {name: _value(where, name, config, name, key) for name, key in TOP.items()}
    tokens = _token_list(config, where)
    filterbank = _frontend(config, where) if top["frontend"] else _given_features(config, where)
    name = top["normalize"]
    normalise = _section(config, where, "normalize_conf", NORMALISE[name]) if name else {}
    return EspnetSettings(
        model=_model(config, where, top, len(tokens), filterbank.dim),
        filterbank=filterbank,
        assumed_features=not top["frontend"],
        normalisation=(name or "none").removesuffix("_mvn"),
        means=bool(normalise.get("norm_means", False)),
        variances=bool(normalise.get("norm_vars", False)),
        stats_file=normalise.get("stats_file"),
        token_list=tokens,
        token_type=top["token_type"],
        bpe_model=config.get("bpemodel"),
        has_symbols=bool(config.get("non_linguistic_symbols")),
        version=str(config.get("version") or ""),
    )


def _refuse(where: str, key: str, value: object, problem: str) -> ConfigError:
    return ConfigError(where, key, value, problem, REMEDY)


def _value(where: str, path: str, table: Mapping[str, Any], name: str, key: Key) -> Any:
    value = table.get(name, key.default)
    if key.only is not None:
        if value not in key.only or isinstance(value, bool) != isinstance(key.only[0], bool):
            understood = ", ".join(map(repr, key.only))
            raise _refuse(where, path, value, f"not supported (only {understood})")
    elif key.default is not None and not _same_type(value, key.default):
        raise _refuse(where, path, value, f"not a {type(key.default).__name__}")
    return value


def _same_type(value: object, default: object) -> bool:
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))


def _section(
    config: Mapping[str, Any], where: str, section: str, keys: Mapping[str, Key]
) -> dict[str, Any]:
    """All values of a section, defaults included; a key that is not known is refused."""
    table = config.get(section) or {}
    if not isinstance(table, dict):
        raise _refuse(where, section, table, "not a table")
    for name, value in table.items():
        if name not in keys:
            raise _refuse(where, f"{section}.{name}", value, "not supported")
    return {
        name: _value(where, f"{section}.{name}", table, name, key) for name, key in keys.items()
    }


def _token_list(config: Mapping[str, Any], where: str) -> tuple[str, ...]:
    tokens = config.get("token_list")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise _refuse(where, "token_list", type(tokens).__name__, "not a list of tokens")
    expected = {0: "<blank>", 1: "<unk>", len(tokens) - 1: "<sos/eos>"}
    for position, token in expected.items():
        if len(tokens) < len(expected) or tokens[position] != token:
            found = tokens[position] if position < len(tokens) else None
            raise _refuse(where, f"token_list[{position}]", found, f"must be {token}")
    return tuple(tokens)


def _frontend(config: Mapping[str, Any], where: str) -> EspnetFilterbank:
    values = _section(config, where, "frontend_conf", FRONTEND)
    enhancement = values["frontend_conf"] or {}
    for name in ("use_wpe", "use_beamformer"):
        if enhancement.get(name):
            path = f"frontend_conf.frontend_conf.{name}"
            raise _refuse(where, path, enhancement[name], "not supported")
    highest = SAMPLE_RATE / 2 if values["fmax"] is None else values["fmax"]
    return EspnetFilterbank(
        n_fft=values["n_fft"],
        win_length=values["win_length"] or values["n_fft"],
        hop_length=values["hop_length"],
        n_mels=values["n_mels"],
        fmin=float(values["fmin"] or 0.0),
        fmax=float(highest),
        window=values["window"],
        center=values["center"],
    )


def _given_features(config: Mapping[str, Any], where: str) -> Filterbank:
    """ESPnet's recipes compute features beforehand with Kaldi: 80 bands, or 83 with pitch."""
    size = config.get("input_size")
    if size != FEATURE_DIM:
        problem = f"without a frontend only {FEATURE_DIM} Kaldi filterbank values are supported"
        raise _refuse(where, "input_size", size, problem)
    return KaldiFilterbank()


def _model(
    config: Mapping[str, Any], where: str, top: Mapping[str, Any], vocab_size: int, bands: int
) -> ModelConfig:
    conformer = top["encoder"] == "conformer"
    encoder = _section(config, where, "encoder_conf", CONFORMER if conformer else TRANSFORMER)
    kind = _kind(config, where, top["model"])
    decoder = _section(config, where, "decoder_conf", DECODER)
    family = _conformer_fields(encoder, where) if conformer else _transformer_fields()
    return ModelConfig(
        kind=kind,
        vocab_size=vocab_size,
        dim=encoder["output_size"],
        heads=encoder["attention_heads"],
        inner=encoder["linear_units"],
        encoder_layers=encoder["num_blocks"],
        decoder_layers=decoder["num_blocks"],
        decoder_heads=decoder["attention_heads"],
        decoder_inner=decoder["linear_units"],
        dropout=encoder["dropout_rate"],
        positional_dropout=encoder["positional_dropout_rate"],
        attention_dropout=encoder["attention_dropout_rate"],
        feature_dim=bands,
        **family,
    )


def _kind(config: Mapping[str, Any], where: str, model: str) -> Kind:
    """The decoder must be the one that goes with the model, and both heads must be there."""
    decoder = Key("transformer" if model == "espnet" else "mlm")
    if config.get("decoder", decoder.default) != decoder.default:
        raise _refuse(where, "decoder", config["decoder"], f"not supported with model {model}")
    if config.get("joint_net_conf"):
        raise _refuse(where, "joint_net_conf", config["joint_net_conf"], "transducers are not")
    settings = config.get("model_conf") or {}
    weight = settings.get("ctc_weight", 0.5)
    if weight in (0, 1):
        missing = "the CTC head" if weight == 0 else "the decoder"
        raise _refuse(where, "model_conf.ctc_weight", weight, f"{missing} was never trained")
    if settings.get("lang_token_id", -1) != -1:
        raise _refuse(where, "model_conf.lang_token_id", settings["lang_token_id"], "not supported")
    return "ar" if model == "espnet" else "mask-ctc"


def _transformer_fields() -> dict[str, Any]:
    return {"encoder": "transformer", "positions": "absolute", "activation": "relu"}


def _conformer_fields(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    return {
        "encoder": "conformer",
        "positions": _positions(values, where),
        "activation": values["activation_type"],
        "macaron": values["macaron_style"],
        "convolution": values["use_cnn_module"],
        "kernel": values["cnn_module_kernel"],
    }


def _positions(values: Mapping[str, Any], where: str) -> str:
    """ESPnet's three keys for positions are one choice; `legacy` renames the other two."""
    place, attention = values["pos_enc_layer_type"], values["selfattention_layer_type"]
    if values["rel_pos_type"] == "legacy":
        place = "legacy_rel_pos" if place == "rel_pos" else place
        attention = "legacy_rel_selfattn" if attention == "rel_selfattn" else attention
    pairs = {
        ("rel_pos", "rel_selfattn"): "relative",
        ("legacy_rel_pos", "legacy_rel_selfattn"): "relative-legacy",
        ("abs_pos", "selfattn"): "absolute",
    }
    if (place, attention) not in pairs:
        key = "encoder_conf.selfattention_layer_type"
        raise _refuse(where, key, attention, f"not supported with pos_enc_layer_type {place}")
    return pairs[place, attention]
