"""Model directories: weights as safetensors, everything else as TOML; no code runs from them.

A directory is self-contained: `model.toml`, `weights.safetensors`, `tokenizer.model`,
`cmvn.safetensors`; training adds `train.jsonl` and `checkpoints/`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import tomli_w
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kdpipe.config import parse_table, to_table
from kdpipe.errors import ConfigError, DataError, InputNotFoundError, ModelFormatError
from kdpipe.features.cmvn import AnyCmvn, Cmvn, load_cmvn
from kdpipe.features.filterbank import KaldiFilterbank
from kdpipe.features.kinds import Filterbank, read_filterbank
from kdpipe.files import atomic_write_bytes, atomic_write_text, sha256_file
from kdpipe.models import ModelConfig, RecognitionModel, build_model
from kdpipe.models.bound import least_parameters
from kdpipe.text.tokenizer import Tokenizer

__all__ = [
    "Lineage",
    "ModelBundle",
    "ModelCard",
    "average_epochs",
    "card_filterbank",
    "load_model",
    "load_training_state",
    "prune_epochs",
    "read_card",
    "save_epoch",
    "save_model",
    "save_training_state",
    "weights_digest",
]

FORMAT_VERSION = 1
WEIGHTS = "weights.safetensors"
CHECKPOINTS = "checkpoints"
OTHER_FOLDER = "Give a folder that a training or an import wrote"


@dataclass(frozen=True)
class Lineage:
    """A store whose targets a student learned from, and the teacher behind it."""

    store_digest: str
    teacher_name: str
    teacher_sha256: str


@dataclass(frozen=True)
class ModelCard:
    """What `model.toml` says: the model's shape and where it comes from.

    `features` is the table of the prepared data's settings that says how features are computed.
    `source` names the files an imported model was made of; it is empty for one trained here.
    """

    name: str
    sizes: ModelConfig
    tokenizer_fingerprint: str
    feature_type: str
    feature_digest: str
    manifest_digest: str
    seed: int
    kdpipe_version: str
    lineage: tuple[Lineage, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    features: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class ModelBundle:
    """A model ready to use, with what its input and output need.

    `model` takes features (B, T, F) that `cmvn` has normalised; `tokenizer` turns its token ids
    into text; `card` says its sizes and where it comes from.
    """

    model: RecognitionModel
    tokenizer: Tokenizer
    cmvn: AnyCmvn
    card: ModelCard
    path: Path

    @property
    def filterbank(self) -> Filterbank:
        """The features that the model was trained on, to compute from audio.

        Raises `DataError` for features that this version cannot compute.
        """
        return card_filterbank(self.card, self.path)


def save_model(
    out: Path, card: ModelCard, weights: Mapping[str, Tensor], tokenizer: Path, cmvn: AnyCmvn
) -> None:
    """Write a model directory; `weights.safetensors` comes last and makes it a model."""
    atomic_write_bytes(out / "tokenizer.model", tokenizer.read_bytes())
    cmvn.save(out / "cmvn.safetensors")
    atomic_write_text(out / "model.toml", tomli_w.dumps(to_table(card)))
    _save_tensors(out / WEIGHTS, weights, {"kind": card.sizes.kind})


def read_card(path: Path) -> ModelCard:
    """Read `model.toml` of a model directory.

    Raises `InputNotFoundError` where there is none, `ModelFormatError` where it is damaged
    or of a newer format.
    """
    file = path / "model.toml"
    if not file.is_file():
        begun = (path / CHECKPOINTS).is_dir()
        remedy = "Its training is not finished: run that command again" if begun else OTHER_FOLDER
        raise InputNotFoundError(path, "model (model.toml)", remedy)
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        # ValueError: bad syntax, bad UTF-8, integers of thousands of digits.
        raise ModelFormatError(file, f"not TOML ({error})", "Copy the model again") from error
    if "kind" in table:
        raise ModelFormatError(
            file, f"a teacher of kind {table['kind']}, which gives text alone",
            "Give it to teacher-dump, and train a student on the store",
        )  # fmt: skip
    version = table.get("format_version", 0)
    if version != FORMAT_VERSION:
        raise ModelFormatError(
            file, f"format version {version}, not {FORMAT_VERSION}", "Use a matching kdpipe"
        )
    try:
        return parse_table(ModelCard, table, str(file))
    except ConfigError as error:
        problem = f"{error.key} = {error.value!r}: {error.problem}"
        raise ModelFormatError(file, problem, "Copy the model again") from error


def card_filterbank(card: ModelCard, path: Path) -> Filterbank:
    """How the features of the model in `path` are computed from a waveform.

    Raises `DataError` for features that this version cannot compute.
    """
    # Cards older than the table have its kind alone, and Kaldi's was the only one.
    table = card.features or {**KaldiFilterbank().describe(), "kind": card.feature_type}
    return read_filterbank(table, str(path / "model.toml"))


def load_model(path: Path | str, device: torch.device | None = None) -> ModelBundle:
    """Load a model directory for inference: eval mode, float32, on `device` (default: the CPU).

    Raises `InputNotFoundError` for a folder that is no model or whose training has not
    finished, `ModelFormatError` for one that is damaged, of a newer format, or whose parts do
    not fit together. Nothing in the folder is run.
    """
    path = Path(path)
    card = read_card(path)
    if not (path / WEIGHTS).is_file():
        raise InputNotFoundError(
            path, f"{WEIGHTS}", "Its training is not finished: run the training command again"
        )
    tokenizer = Tokenizer.load(path / "tokenizer.model")
    if tokenizer.fingerprint != card.tokenizer_fingerprint:
        raise ModelFormatError(
            path, "tokenizer.model is not the one of model.toml", "Restore the original file"
        )
    cmvn = load_cmvn(path / "cmvn.safetensors")
    _require_widths(card, cmvn, path)
    model = _load_weights(path / WEIGHTS, card.sizes)
    model.eval()
    return ModelBundle(model.to(device or torch.device("cpu")), tokenizer, cmvn, card, path)


def _require_widths(card: ModelCard, cmvn: AnyCmvn, path: Path) -> None:
    """Raise `ModelFormatError` unless features, normalisation and model have as many bands."""
    bands = card.sizes.feature_dim
    if isinstance(cmvn, Cmvn) and cmvn.mean.shape != (bands,):
        problem = f"normalises {list(cmvn.mean.shape)} values, not the model's {bands} bands"
        raise ModelFormatError(path / "cmvn.safetensors", problem, "Restore the original file")
    with suppress(DataError):  # Unknown features are an error where they are computed.
        width = card_filterbank(card, path).dim
        if width != bands:
            problem = f"features of {width} bands for a model of {bands}"
            raise ModelFormatError(path / "model.toml", problem, "Copy the model again")


def weights_digest(path: Path) -> str:
    """SHA-256 of a model directory's weights: the identity of a teacher."""
    return sha256_file(path / WEIGHTS)


def _load_weights(path: Path, sizes: ModelConfig) -> RecognitionModel:
    tensors = _read_tensors(path)
    # Before it is built: a damaged model.toml could ask for any amount of memory and time.
    if least_parameters(sizes) > sum(tensor.numel() for tensor in tensors.values()):
        raise _misfit(path, "too few of them")
    model = build_model(sizes)
    expected = model.state_dict()
    wrong = sorted(set(expected) ^ set(tensors)) or [
        name for name in expected if expected[name].shape != tensors[name].shape
    ]
    if wrong:
        raise _misfit(path, f"first: {wrong[0]}")
    model.load_state_dict(tensors)
    return model


def _misfit(path: Path, which: str) -> ModelFormatError:
    return ModelFormatError(
        path, f"weights do not fit model.toml ({which})", "Copy both files again"
    )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ModelFormatError(path, f"damaged ({error})", "Copy or make it again") from error


def _save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    atomic_write_bytes(path, safetensors.torch.save(plain, dict(metadata or {})))


def _epoch_files(out: Path) -> list[Path]:
    """Checkpoints of whole epochs, oldest first."""
    return sorted((out / CHECKPOINTS).glob("epoch-*.safetensors"))


def save_epoch(out: Path, epoch: int, model: nn.Module) -> None:
    """Keep the weights after `epoch` (from 1) for averaging."""
    _save_tensors(out / CHECKPOINTS / f"epoch-{epoch:05d}.safetensors", model.state_dict())


def prune_epochs(out: Path, keep: int) -> None:
    """Remove all but the last `keep` epochs' weights."""
    for path in _epoch_files(out)[:-keep]:
        path.unlink()


def average_epochs(out: Path, last: int) -> dict[str, Tensor]:
    """Mean of the last `last` epochs' weights; counters (integer tensors) from the newest."""
    states = [_read_tensors(path) for path in _epoch_files(out)[-last:]]
    return {name: _mean([state[name] for state in states]) for name in states[-1]}


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    if not tensors[-1].is_floating_point():
        return tensors[-1]
    return torch.stack([tensor.double() for tensor in tensors]).mean(0).to(tensors[-1].dtype)


def save_training_state(
    out: Path, model: nn.Module, optimizer: Optimizer, epoch: int, step: int
) -> None:
    """Everything that resuming after `epoch` needs, in one atomic file."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
    tensors["progress"] = torch.tensor([epoch, step])
    _save_tensors(out / CHECKPOINTS / "last.safetensors", tensors)


def load_training_state(out: Path, model: nn.Module, optimizer: Optimizer) -> tuple[int, int]:
    """Restore the last state; returns (epochs done, updates done), (0, 0) at the start.

    Raises `ModelFormatError` for a file that does not fit the model.
    """
    path = out / CHECKPOINTS / "last.safetensors"
    if not path.is_file():
        return 0, 0
    try:
        tensors = _read_tensors(path)
    except ModelFormatError as error:
        raise ModelFormatError(
            path, error.problem, f"Remove {path.parent} to begin anew"
        ) from error
    epoch, step = tensors.pop("progress").tolist()
    weights = {name[6:]: value for name, value in tensors.items() if name.startswith("model.")}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelFormatError(path, "not of this model", "Remove the output folder") from error
    _restore_optimizer(optimizer, tensors)
    return int(epoch), int(step)


def _restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
