"""ESPnet2 experiments and packed models, read into a `RecognitionModel` and its front end."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from kdpipe.errors import ModelFormatError
from kdpipe.features.cmvn import AnyCmvn, Cmvn, UtteranceCmvn
from kdpipe.features.kinds import Filterbank
from kdpipe.models.bound import least_parameters
from kdpipe.models.foreign.espnet_config import EspnetSettings, read_settings
from kdpipe.models.foreign.espnet_files import choose_files, read_beside
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


@dataclass(frozen=True, eq=False)
class ForeignModel:
    """A model from elsewhere, in evaluation mode, with all that its input and output need.

    `assumed_features` says that the model's files do not tell its features: `filterbank` is
    then what they most likely are. `token_list` has blank first, then unk, and sos/eos last;
    `bpe_model` is the content of a sentencepiece model where `token_type` is "bpe";
    `has_symbols` says that tokens of several characters are units of a "char" text. `version` is
    that of the toolkit ("" if unknown), `files` the SHA-256 of every file that was read.
    """

    model: RecognitionModel
    name: str
    filterbank: Filterbank
    assumed_features: bool
    cmvn: AnyCmvn
    token_list: tuple[str, ...]
    token_type: str
    bpe_model: bytes | None
    has_symbols: bool
    version: str
    files: Mapping[str, str]


def read_espnet(path: Path, config: str | None = None, weights: str | None = None) -> ForeignModel:
    """Read an ESPnet2 experiment folder, a downloaded snapshot, or a packed model zip.

    `config` and `weights` name files in it where it holds several. Raises InputNotFoundError
    or ModelFormatError for missing, damaged or dangerous files, ConfigError naming the key and
    value of what is not supported.
    """
    files, digests = _recorded(open_published(path))
    main = choose_files(files, config, weights)
    where = f"{path}/{main.config}"
    settings = read_settings(parse_yaml(files.read(main.config), where), where)
    state = parse_weights(files.read(main.weights), f"{path}/{main.weights}")
    return ForeignModel(
        model=_build(settings, state, f"{path}/{main.weights}"),
        name=_name(path, main.config),
        filterbank=settings.filterbank,
        assumed_features=settings.assumed_features,
        cmvn=_cmvn(files, main.config, settings, state),
        token_list=settings.token_list,
        token_type=settings.token_type,
        bpe_model=_bpe_model(files, main.config, settings, digests),
        has_symbols=settings.has_symbols,
        version=settings.version or main.version,
        files=digests,
    )


def _recorded(files: PublishedFiles) -> tuple[PublishedFiles, dict[str, str]]:
    """The same files, and the digests of those that are read from now on."""
    digests: dict[str, str] = {}

    def read(name: str) -> bytes:
        content = files.read(name)
        digests[name] = hashlib.sha256(content).hexdigest()
        return content

    return replace(files, read=read), digests


def _name(path: Path, config_name: str) -> str:
    folder = PurePosixPath(config_name).parent.name
    return folder or (path.resolve().name if path.is_dir() else path.stem)


def _cmvn(
    files: PublishedFiles, config: str, settings: EspnetSettings, weights: Mapping[str, Tensor]
) -> AnyCmvn:
    if settings.normalisation == "utterance":
        return UtteranceCmvn(settings.variances)
    bands = settings.model.feature_dim
    if settings.normalisation == "none":
        return Cmvn(torch.zeros(bands), torch.ones(bands))
    mean, std = _statistics(files, config, settings, weights)
    if mean.shape != (bands,) or std.shape != (bands,):
        problem = f"normalises {tuple(mean.shape)} values, not {bands} bands"
        raise ModelFormatError(files.root, problem, "Take the original files")
    return Cmvn(
        mean.float() if settings.means else torch.zeros(bands),
        std.float() if settings.variances else torch.ones(bands),
    )


def _statistics(
    files: PublishedFiles, config: str, settings: EspnetSettings, weights: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Global mean and deviation: saved with the weights, else in the statistics file."""
    if "normalize.mean" in weights and "normalize.std" in weights:
        return weights["normalize.mean"], weights["normalize.std"]
    given = settings.stats_file or "feats_stats.npz"
    content = read_beside(files, given, config)
    arrays = parse_arrays(content, f"{files.root}/{given}", ["count", "sum", "sum_square"])
    count, total, squares = arrays
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean * mean, 0.0))
    return torch.from_numpy(mean), torch.from_numpy(np.maximum(deviation, 1e-20))


def _bpe_model(
    files: PublishedFiles, config: str, settings: EspnetSettings, digests: dict[str, str]
) -> bytes | None:
    if settings.token_type != "bpe":
        return None
    given = settings.bpe_model or "bpe.model"
    content = read_beside(files, given, config)
    digest = hashlib.sha256(content).hexdigest()
    if digest not in digests.values():
        digests[given] = digest
    return content


def _build(settings: EspnetSettings, weights: Mapping[str, Tensor], where: str) -> RecognitionModel:
    for name in weights:
        if name.split(".")[0] not in OURS + PASSED_OVER:
            raise ModelFormatError(where, f"has the part {name}", "Such models are not supported")
    state = {name: tensor for name, tensor in weights.items() if name.split(".")[0] in OURS}
    # Before it is built: a config could ask for any amount of memory and time.
    if least_parameters(settings.model) > sum(tensor.numel() for tensor in state.values()):
        raise _misfit(where, "too few weights")
    model = RecognitionModel(settings.model)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise _misfit(where, " ".join(str(error).split())[:300]) from error
    return model.eval()


def _misfit(where: str, reason: str) -> ModelFormatError:
    problem = f"does not fit its config ({reason})"
    return ModelFormatError(where, problem, "Take config and weights of one model")
