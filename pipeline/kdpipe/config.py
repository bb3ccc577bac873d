"""Recipes: frozen dataclasses read from TOML; anything unknown or out of range is an error.

`parse_table` turns a TOML table into a dataclass and names the key, the value and the
remedy for whatever does not fit. `Recipe` is the whole of what a training run can be told;
models, losses and searches take plain arguments and never see these classes.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from kdpipe.errors import ConfigError, DataError, InputNotFoundError, did_you_mean

__all__ = [
    "DistillationSection",
    "ModelSection",
    "Recipe",
    "SpecAugmentSection",
    "StageSection",
    "StudentSection",
    "TeacherSection",
    "TrainingSection",
    "apply_overrides",
    "load_recipe",
    "parse_table",
    "recipe_names",
    "setting",
    "setting_keys",
    "to_table",
]

T = TypeVar("T")
Table = Mapping[str, Any]


def setting(
    default: Any,
    help: str,  # noqa: A002
    low: int | float | None = None,
    high: int | float | None = None,
) -> Any:
    """A dataclass field with its documentation and the range it may take (ends included)."""
    return field(default=default, metadata={"help": help, "low": low, "high": high})


@dataclass(frozen=True)
class ModelSection:
    """Sizes of one model: a name of the paper's Table 2, or dim, heads and inner by hand."""

    size: Literal["custom", "L", "M", "S", "XS"] = setting(
        "custom", "a size of Table 2, or custom with dim, heads and inner given"
    )
    dim: int = setting(0, "attention width d (0: from size)", low=0, high=8192)
    heads: int = setting(0, "attention heads (0: from size)", low=0, high=128)
    inner: int = setting(0, "feed-forward width (0: from size)", low=0, high=65536)
    encoder_layers: int = setting(12, "Conformer blocks", low=1, high=100)
    decoder_layers: int = setting(6, "Transformer decoder blocks", low=1, high=100)
    kernel: int = setting(31, "taps of the Conformer's convolution, odd", low=1, high=255)
    dropout: float = setting(0.1, "dropout probability", low=0.0, high=0.9)

    def __post_init__(self) -> None:
        by_hand = (self.dim, self.heads, self.inner)
        if self.size == "custom" and not all(by_hand):
            raise ConfigError(
                "model", "size", self.size, "dim, heads or inner is missing",
                "Give all three, or a size of L, M, S, XS",
            )  # fmt: skip
        if self.size != "custom" and any(by_hand):
            raise ConfigError(
                "model", "size", self.size, "dim, heads and inner come with a named size",
                "Remove them, or set size = \"custom\"",
            )  # fmt: skip
        if self.kernel % 2 == 0:
            raise ConfigError("model", "kernel", self.kernel, "even", "Give an odd number of taps")


@dataclass(frozen=True)
class TrainingSection:
    """How one model is trained."""

    epochs: int = setting(80, "passes over the training split", low=1, high=100_000)
    batch_frames: int = setting(
        24_000, "frames of 10 ms of speech in a batch, padding included", low=100, high=10_000_000
    )
    max_utterances: int = setting(512, "utterances in a batch at most", low=1, high=100_000)
    accumulate: int = setting(1, "batches per update", low=1, high=10_000)
    learning_rate: float = setting(1e-3, "peak learning rate", low=1e-8, high=10.0)
    warmup_steps: int = setting(25_000, "updates until the peak", low=1, high=10_000_000)
    schedule: Literal["noam", "cosine"] = setting(
        "noam", "after the peak: noam (step^-0.5) or cosine (to zero at the last epoch)"
    )
    weight_decay: float = setting(1e-6, "AdamW's decoupled weight decay", low=0.0, high=1.0)
    gradient_clip: float = setting(5.0, "largest gradient norm", low=1e-6, high=1e6)
    ctc_weight: float = setting(0.3, "alpha of L_jca (Eq. 3, 6)", low=0.0, high=1.0)
    label_smoothing: float = setting(0.1, "of the decoder's loss", low=0.0, high=0.7)
    average_last: int = setting(5, "epochs whose weights are averaged", low=1, high=1000)
    workers: int = setting(0, "DataLoader worker processes", low=0, high=256)
    precision: Literal["auto", "float32", "bf16"] = setting(
        "auto", "auto: bf16 autocast on a GPU or a CPU that multiplies in bf16, else float32"
    )
    log_steps: int = setting(50, "updates between lines of train.jsonl", low=1, high=1_000_000)


@dataclass(frozen=True)
class SpecAugmentSection:
    """SpecAugment, after CMVN; the fill is the mean (0)."""

    frequency_masks: int = setting(2, "frequency masks an utterance", low=0, high=100)
    frequency_width: int = setting(27, "widest frequency mask, bins", low=0, high=80)
    time_masks: int = setting(2, "time masks an utterance", low=0, high=1000)
    time_width: int = setting(40, "widest time mask, frames of 10 ms", low=0, high=10_000)
    time_fraction: float = setting(
        0.2, "and never more of the utterance than this in one mask", low=0.0, high=1.0
    )
    time_warp: int = setting(
        0,
        "furthest time warp, frames of 10 ms; refused with cached frame targets",
        low=0,
        high=1000,
    )


@dataclass(frozen=True)
class StageSection:
    """One stage of the student's schedule: the weights of Eq. 10 and 13."""

    epochs: int = setting(80, "passes over the training split", low=1, high=100_000)
    beta_frame: float = setting(1.0, "beta_F of Eq. 10", low=0.0, high=1000.0)
    beta_sequence: float = setting(0.0, "beta_S of Eq. 10", low=0.0, high=1000.0)
    gamma_encoder: float = setting(0.5, "gamma_enc of Eq. 13", low=0.0, high=1000.0)
    gamma_decoder: float = setting(0.3, "gamma_dec of Eq. 13", low=0.0, high=1000.0)


@dataclass(frozen=True)
class DistillationSection:
    """How cached targets enter the loss."""

    tail: Literal["bucket", "uniform", "renormalise", "drop"] = setting(
        "bucket", "what the classes below the store's floor become"
    )
    scale: Literal["unit", "paper"] = setting(
        "unit", "the student's terms. unit: a mean per token or frame; paper: sums per utterance"
    )
    sequence: bool = setting(True, "false: no sequence-level term in any stage (+L_F-KD row)")
    nbest: int = setting(10, "hypotheses of the store used by Eq. 8", low=1, high=1000)
    min_confidence: float = setting(
        0.0, "pseudo-labels below exp(joint score / (tokens + 1)) are left out", low=0.0, high=1.0
    )
    temperature: float = setting(
        1.0, "flattens both sides of the frame-level losses; above 1 for a teacher too sure of"
        " itself", low=0.1, high=20.0,
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.temperature != 1.0 and self.tail != "bucket":
            raise ConfigError(
                "distillation", "temperature", self.temperature, f'tail = "{self.tail}"',
                'Set distillation.tail = "bucket" or distillation.temperature = 1',
            )  # fmt: skip


TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    dict: "a table",
}

PAPER_STAGES = (
    StageSection(80, 1.0, 0.0, 0.5, 0.3),
    StageSection(20, 1.0, 1.0, 0.5, 0.5),
)


@dataclass(frozen=True)
class TeacherSection:
    """The autoregressive teacher."""

    model: ModelSection
    training: TrainingSection = TrainingSection()
    scale: Literal["unit", "paper"] = setting(
        "unit", "of L_jca's two terms: a mean per token, or the sum of each utterance"
    )


@dataclass(frozen=True)
class StudentSection:
    """The Mask-CTC student; `training.epochs` is the sum over the stages and is not given."""

    model: ModelSection
    training: TrainingSection = TrainingSection()
    stages: tuple[StageSection, ...] = PAPER_STAGES
    masks_per_utterance: int = setting(
        1, "maskings drawn of each utterance and update for the decoder's losses", low=1, high=64
    )

    def __post_init__(self) -> None:
        if not self.stages:
            raise ConfigError(
                "student", "stages", [], "no stage, so nothing to train",
                "Give at least one [[student.stages]] with its epochs",
            )  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Everything that train-teacher and train-student can be told."""

    name: str = field(metadata={"help": "what the recipe is called, for messages and logs"})
    description: str = field(metadata={"help": "one line for people"})
    teacher: TeacherSection
    student: StudentSection
    specaugment: SpecAugmentSection = SpecAugmentSection()
    distillation: DistillationSection = DistillationSection()


def recipe_names() -> list[str]:
    """Names of the recipes shipped with the package."""
    folder = resources.files("kdpipe") / "recipes"
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".toml"))


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe by name, or a TOML file, with `key=value` overrides applied.

    Raises `InputNotFoundError` for a name that is neither, `ConfigError` for anything in it
    that does not fit.
    """
    table = apply_overrides(_read_toml(name_or_path), overrides)
    student = table.get("student")
    training = student.get("training") if isinstance(student, Mapping) else None
    if isinstance(training, Mapping) and "epochs" in training:
        raise ConfigError(
            name_or_path, "student.training.epochs", training["epochs"],
            "a student's epochs are those of its stages", "Set student.stages.0.epochs",
        )  # fmt: skip
    return parse_table(Recipe, table, name_or_path)


def _read_toml(name_or_path: str) -> dict[str, Any]:
    shipped = resources.files("kdpipe") / "recipes" / f"{name_or_path}.toml"
    if shipped.is_file():
        return tomllib.loads(shipped.read_text(encoding="utf-8"))
    path = Path(name_or_path)
    if not path.is_file():
        near = did_you_mean(name_or_path, recipe_names())
        raise InputNotFoundError(path, "recipe", f"Give a TOML file or a shipped recipe. {near}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        remedy = f"Mend it, or give one of: {', '.join(recipe_names())}"
        raise DataError(str(path), f"not TOML ({error})", remedy) from error


def apply_overrides(table: Table, overrides: Sequence[str]) -> dict[str, Any]:
    """Return `table` with `a.b.0.c=value` assignments made; values are TOML, else strings."""
    result: dict[str, Any] = _deep_copy(dict(table))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(
                "--set", override, "", "not key=value", "Write --set teacher.training.epochs=20"
            )
        _assign(result, key.strip(), _parse_value(text.strip()))
    return result


def _deep_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _deep_copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_deep_copy(item) for item in value]
    return value


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _assign(table: Any, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for part in parents:
        table = _descend(table, part, key)
    if isinstance(table, list):
        table[_list_index(table, last, key)] = value
    else:
        table[last] = value


def _descend(table: Any, part: str, key: str) -> Any:
    if isinstance(table, list):
        return table[_list_index(table, part, key)]
    child = table.setdefault(part, {})
    if not isinstance(child, dict | list):
        raise ConfigError("--set", key, child, f"{part} is not a table", "Name a key inside one")
    return child


def _list_index(items: list[Any], part: str, key: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise ConfigError(
            "--set", key, part, f"no such entry of {len(items)}", "Count entries from 0"
        )
    return int(part)


def parse_table(cls: type[T], table: Table, source: str, prefix: str = "") -> T:
    """Build the dataclass `cls` from a TOML table, strictly.

    Raises `ConfigError` for an unknown or missing key, a wrong type, or a bad range.
    """
    hints = typing.get_type_hints(cls)
    fields = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in table:
        if key not in fields:
            _refuse_unknown(source, prefix + key, table[key], list(fields))
    values = {}
    for name, item in fields.items():
        if name in table:
            where = f"{prefix}{name}"
            values[name] = _parse_typed(hints[name], table[name], source, where)
            _check_range(item.metadata, values[name], source, where)
        elif item.default is item.default_factory is dataclasses.MISSING:
            raise ConfigError(source, prefix + name, None, "missing", "Add the key")
    try:
        return cls(**values)
    except ConfigError as error:
        key = f"{prefix}{error.key}"
        raise ConfigError(source, key, error.value, error.problem, error.remedy) from None


def _refuse_unknown(source: str, key: str, value: Any, known: list[str]) -> None:
    remedy = did_you_mean(key.rsplit(".", 1)[-1], known)
    raise ConfigError(source, key, value, "unknown key", remedy)


def _parse_typed(kind: Any, value: Any, source: str, key: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ConfigError(source, key, value, "not a table", f"Write it as [{key}]")
        return parse_table(kind, value, source, f"{key}.")  # type: ignore[arg-type]
    if typing.get_origin(kind) is tuple:
        return _parse_tuple(typing.get_args(kind)[0], value, source, key)
    if typing.get_origin(kind) is Mapping:
        kind = dict
    if typing.get_origin(kind) is typing.Literal:
        if value not in typing.get_args(kind):
            known = ", ".join(map(str, typing.get_args(kind)))
            raise ConfigError(source, key, value, "not one of the choices", f"Give one of {known}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        wanted = TYPE_NAMES.get(kind, str(kind))
        raise ConfigError(source, key, value, f"not {wanted}", f"Give {wanted}")
    return value


def _parse_tuple(kind: Any, value: Any, source: str, key: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ConfigError(source, key, value, "not a list", "Write it as a list")
    return tuple(_parse_typed(kind, item, source, f"{key}.{i}") for i, item in enumerate(value))


def _check_range(metadata: Mapping[str, Any], value: Any, source: str, key: str) -> None:
    low, high = metadata.get("low"), metadata.get("high")
    # `not (low <= value)` rather than `value < low`: NaN must fail too.
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        raise ConfigError(
            source, key, value, "out of range", f"Give a value from {low:g} to {high:g}"
        )


def setting_keys(cls: Any, prefix: str = "") -> list[str]:
    """Every key that a config dataclass can be told, dotted; entries of lists are number 0."""
    hints = typing.get_type_hints(cls)
    keys: list[str] = []
    for item in dataclasses.fields(cls):
        kind, name = hints[item.name], f"{prefix}{item.name}"
        if typing.get_origin(kind) is tuple:
            kind, name = typing.get_args(kind)[0], f"{name}.0"
        keys += setting_keys(kind, f"{name}.") if dataclasses.is_dataclass(kind) else [name]
    return keys


def to_table(config: Any) -> dict[str, Any]:
    """The TOML table of a config dataclass (the inverse of `parse_table`)."""
    return {
        item.name: _plain(getattr(config, item.name))
        for item in dataclasses.fields(config)
        if getattr(config, item.name) is not None
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_table(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, types.MappingProxyType | dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
