"""ESPnet2 experiments and packed models, read into a `RecognitionModel` and its front end."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kdpipe.errors import ModelFormatError
from kdpipe.features.espnet_filterbank import EspnetFilterbank, utterance_mvn
from kdpipe.models.foreign.espnet_config import EspnetSettings, read_settings
from kdpipe.models.foreign.files import (
    PublishedFiles,
    open_published,
    parse_arrays,
    parse_weights,
    parse_yaml,
)
from kdpipe.models.recognition import RecognitionModel

__all__ = ["ForeignModel", "read_espnet"]

OURS = ("encoder", "decoder", "ctc")
# What goes with the front end or with training alone; any other part would be computation.
PASSED_OVER = ("frontend", "normalize", "specaug", "criterion_att", "criterion_mlm", "criterion")
PREFERRED = (r"valid\.acc\.ave.*", r"valid\..*\.ave.*", r"valid\.acc\.best", r".*")


@dataclass(frozen=True, eq=False)
class ForeignModel:
    """A model from elsewhere, in evaluation mode, with all that its input and output need.

    `frontend` is None when features are computed elsewhere (`feature_type` "given").
    `normalisation` is "global" (`mean`, `std`: (F,)), "utterance" or "none" (None).
    `token_list` has blank first, then unk, and sos/eos last; `bpe_model` is the content of a
    sentencepiece model where `token_type` is "bpe".
    """

    model: RecognitionModel
    name: str
    feature_type: str
    frontend: EspnetFilterbank | None
    normalisation: str
    mean: Float[Tensor, " F"] | None
    std: Float[Tensor, " F"] | None
    utterance_variance: bool
    token_list: tuple[str, ...]
    token_type: str
    bpe_model: bytes | None

    def normalise(self, features: Float[Tensor, "T F"]) -> Float[Tensor, "T F"]:
        """What the encoder expects of one utterance's features."""
        if self.normalisation == "utterance":
            return utterance_mvn(features, self.utterance_variance)
        if self.mean is None or self.std is None:
            return features
        return (features - self.mean) / self.std


def read_espnet(path: Path) -> ForeignModel:
    """Read an ESPnet2 experiment folder, a downloaded snapshot, or a packed model zip.

    Raises InputNotFoundError or ModelFormatError for missing, damaged or dangerous files,
    ConfigError naming the key and value of what is not supported.
    """
    files = open_published(path)
    config_name, weights_name = _main_files(files)
    where = f"{path}/{config_name}"
    settings = read_settings(parse_yaml(files.read(config_name), where), where)
    weights = parse_weights(files.read(weights_name), f"{path}/{weights_name}")
    mean, std = _statistics(files, settings, weights)
    return ForeignModel(
        model=_build(settings, weights, f"{path}/{weights_name}"),
        name=_name(path, config_name),
        feature_type="espnet-filterbank" if settings.frontend else "given",
        frontend=settings.frontend,
        normalisation=settings.normalisation,
        mean=mean,
        std=std,
        utterance_variance=settings.variances,
        token_list=settings.token_list,
        token_type=settings.token_type,
        bpe_model=_bpe_model(files, settings),
    )


def _name(path: Path, config_name: str) -> str:
    folder = PurePosixPath(config_name).parent.name
    return folder or (path.resolve().name if path.is_dir() else path.stem)


def _main_files(files: PublishedFiles) -> tuple[str, str]:
    """The names of config and weights: what meta.yaml says, or what the folder holds."""
    if "meta.yaml" in files.names:
        where = f"{files.root}/meta.yaml"
        meta = parse_yaml(files.read("meta.yaml"), where)
        config = _listed(meta, "yaml_files", "asr_train_config", where)
        weights = _listed(meta, "files", "asr_model_file", where)
    else:
        config, weights = "config.yaml", _best_weights(files)
    for name in (config, weights):
        if name not in files.names:
            raise ModelFormatError(files.root, f"has no {name}", "Give the whole experiment folder")
    return config, weights


def _listed(meta: Mapping[str, object], table: str, key: str, where: str) -> str:
    entries = meta.get(table)
    value = entries.get(key) if isinstance(entries, dict) else None
    if not isinstance(value, str):
        problem = f"{table}.{key} is missing: no speech recognition model"
        raise ModelFormatError(where, problem, "Give a packed asr model")
    return value


def _best_weights(files: PublishedFiles) -> str:
    """The averaged weights, else the best, else the only ones; never a training checkpoint."""
    top = [name for name in files.names if name.endswith(".pth") and "/" not in name]
    candidates = [name for name in top if name != "checkpoint.pth"]
    for pattern in PREFERRED:
        fitting = [name for name in candidates if re.fullmatch(pattern, name.removesuffix(".pth"))]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            return _one_of(fitting, files)
    raise ModelFormatError(files.root, "holds no weights (*.pth)", "Give the experiment folder")


def _one_of(names: Sequence[str], files: PublishedFiles) -> str:
    """ESPnet links valid.X.ave.pth to one of its averages; other ties are the user's choice."""
    plain = [name for name in names if re.fullmatch(r"valid\.\w+\.ave\.pth", name)]
    if len(plain) == 1:
        return plain[0]
    raise ModelFormatError(
        files.root, f"holds several weights ({', '.join(names)})", "Leave one of them in the folder"
    )


def _statistics(
    files: PublishedFiles, settings: EspnetSettings, weights: Mapping[str, Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    """Global mean and deviation: saved with the weights, else in the statistics file."""
    if settings.normalisation != "global":
        return None, None
    if "normalize.mean" in weights and "normalize.std" in weights:
        mean, std = weights["normalize.mean"], weights["normalize.std"]
    else:
        mean, std = _statistics_file(files, settings.stats_file or "feats_stats.npz")
    bands = settings.model.feature_dim
    if mean.shape != (bands,) or std.shape != (bands,):
        problem = f"normalises {tuple(mean.shape)} values, not {bands} bands"
        raise ModelFormatError(files.root, problem, "Take the original files")
    return (
        mean.float() if settings.means else torch.zeros(bands),
        std.float() if settings.variances else torch.ones(bands),
    )


def _statistics_file(files: PublishedFiles, given: str) -> tuple[Tensor, Tensor]:
    name = files.locate(given)
    if name is None:
        raise ModelFormatError(files.root, f"has no {given}", "Put it into the folder")
    arrays = parse_arrays(files.read(name), f"{files.root}/{name}", ["count", "sum", "sum_square"])
    count, total, squares = arrays
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean * mean, 0.0))
    return torch.from_numpy(mean), torch.from_numpy(np.maximum(deviation, 1e-20))


def _bpe_model(files: PublishedFiles, settings: EspnetSettings) -> bytes | None:
    if settings.token_type != "bpe":
        return None
    given = settings.bpe_model or "bpe.model"
    name = files.locate(given)
    if name is not None:
        return files.read(name)
    # An experiment folder names it from the recipe's folder, two levels up.
    beside = files.root.resolve().parent.parent / given
    if files.root.is_dir() and beside.is_file():
        return beside.read_bytes()
    raise ModelFormatError(files.root, f"has no {given}", "Put bpe.model into the folder")


def _build(settings: EspnetSettings, weights: Mapping[str, Tensor], where: str) -> RecognitionModel:
    for name in weights:
        if name.split(".")[0] not in OURS + PASSED_OVER:
            raise ModelFormatError(where, f"has the part {name}", "Such models are not supported")
    state = {name: tensor for name, tensor in weights.items() if name.split(".")[0] in OURS}
    model = RecognitionModel(settings.model)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        problem = f"does not fit its config ({reason})"
        raise ModelFormatError(where, problem, "Take config and weights of one model") from error
    return model.eval()
