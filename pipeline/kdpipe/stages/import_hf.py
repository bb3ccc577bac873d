"""`kdpipe import-teacher --from hf`: a Hugging Face speech-to-text model as a teacher.

The folder's configuration, tokenizer and weights are copied; nothing of it is run and nothing is
fetched. Weights are safetensors, or a single pytorch_model.bin, which is read as plain tensors
(`torch.load(weights_only=True)`) and written again as safetensors.
"""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import tomli_w
import torch
from torch import Tensor

from kdpipe.config import to_table
from kdpipe.errors import InputNotFoundError, ModelFormatError
from kdpipe.files import atomic_write_bytes, atomic_write_text, read_json, sha256_file
from kdpipe.models.foreign.files import read_pickled
from kdpipe.models.foreign.hf import HfRecogniser, hf_architectures, load_hf
from kdpipe.progress import progress
from kdpipe.stages.claim import claimed, mark_complete
from kdpipe.stages.hf_card import HF_FOLDER, HF_KIND, HfCard
from kdpipe.stages.imported import Imported

__all__ = ["import_hf"]

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PICKLED_WEIGHTS = "pytorch_model.bin"
NEEDED = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "normalizer.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.spm",
    "*.model",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
)
"""What is copied beside config.json and model.safetensors, where it is there."""
TESTED = ("whisper", "speech_to_text")


def import_hf(
    path: Path, out: Path, language: str | None = None, task: str | None = None
) -> Imported:
    """Copy the model of the folder `path` into the model directory `out` and load it once.

    Raises `InputNotFoundError`, `ModelFormatError` or `ConfigError` naming what does not fit, and
    `DependencyError` without transformers.
    """
    config = _read_config(path)
    sources = _sources(path)
    settings = {
        "command": "import-teacher",
        "toolkit": "hf",
        "files": {name: sha256_file(source) for name, source in sources.items()},
        "language": language,
        "task": task,
    }
    with claimed(out, settings) as complete:
        if not complete:
            _copy(sources, out / HF_FOLDER)
        model = load_hf(out / HF_FOLDER, language, task, torch.device("cpu"))
        if not complete:
            _write_card(path, out, str(config["model_type"]), model, language, task)
            mark_complete(out, settings)
    return Imported(out, not complete, _summary(model, language, task), _notes(config, model))


def _read_config(path: Path) -> Mapping[str, Any]:
    """config.json, of a model type that transcribes speech."""
    if not (path / CONFIG).is_file():
        raise InputNotFoundError(
            path, f"Hugging Face model ({CONFIG})", "Give the folder that save_pretrained wrote"
        )
    config = read_json(path / CONFIG)
    kind = config.get("model_type") if isinstance(config, dict) else None
    known = hf_architectures()
    if not isinstance(config, dict) or kind not in known:
        raise ModelFormatError(
            path / CONFIG,
            f"model_type {kind!r} is no speech-to-text model that transformers has code for",
            f"Give one of: {', '.join(sorted(known))}",
        )
    return config


def _sources(path: Path) -> dict[str, Path]:
    """The files to import by name, weights included."""
    names = sorted(item.name for item in path.iterdir() if item.is_file())
    chosen = [name for name in names if any(fnmatch.fnmatch(name, part) for part in NEEDED)]
    shards = [name for name in chosen if name.endswith(".safetensors")]
    if WEIGHTS in names:
        weights = [WEIGHTS]
    elif shards:
        weights = []
    elif PICKLED_WEIGHTS in names:
        weights = [PICKLED_WEIGHTS]
    else:
        raise InputNotFoundError(
            path / WEIGHTS, "weights", "Save the model with save_pretrained, as safetensors"
        )
    return {name: path / name for name in (CONFIG, *chosen, *weights)}


def _copy(sources: Mapping[str, Path], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, source in progress(list(sources.items()), len(sources), "import", "file"):
        if name == PICKLED_WEIGHTS:
            tensors = _read_pickled(source)
            content = safetensors.torch.save(tensors, {"format": "pt"})
            atomic_write_bytes(folder / WEIGHTS, content)
            continue
        partial = folder / f".{name}.part"
        shutil.copyfile(source, partial)
        partial.replace(folder / name)


def _read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickled state dict; anything else in it is refused, never run."""
    try:
        state = read_pickled(path)
    except ValueError as error:
        raise ModelFormatError(
            path, "not plain weights: it is damaged, or would run code when read",
            "Save the model again with save_pretrained, as safetensors",
        ) from error  # fmt: skip
    tensors = state if isinstance(state, dict) else {}
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ModelFormatError(path, "no table of weights", "Save it with save_pretrained")
    # Tied weights share their memory, which safetensors does not store.
    return {str(name): tensor.clone().contiguous() for name, tensor in tensors.items()}


def _write_card(
    path: Path,
    out: Path,
    model_type: str,
    model: HfRecogniser,
    language: str | None,
    task: str | None,
) -> None:
    files = sorted((out / HF_FOLDER).iterdir())
    card = HfCard(
        kind=HF_KIND,
        name=path.resolve().name,
        model_type=model_type,
        files={file.name: sha256_file(file) for file in files},
        language=language or "",
        task=task or "",
        kdpipe_version=version("kdpipe"),
    )
    atomic_write_text(out / "model.toml", tomli_w.dumps(to_table(card)))


def _summary(model: HfRecogniser, language: str | None, task: str | None) -> str:
    parameters = sum(tensor.numel() for tensor in model.model.parameters())
    said = ", ".join(word for word in (language, task) if word)
    return f"{type(model.model).__name__}, {parameters:,} parameters{said and f', {said}'}"


def _notes(config: Mapping[str, Any], model: HfRecogniser) -> tuple[str, ...]:
    notes = ["It gives text alone: its stores have no posteriors per frame or token"]
    if model.window_seconds is not None:
        notes.append(f"Speech longer than {model.window_seconds:g} s is skipped")
    if config["model_type"] not in TESTED:
        notes.append(
            f"Model type {config['model_type']} was never tested here ({', '.join(TESTED)} were):"
            " look at the texts of its first store"
        )
    return tuple(notes)
