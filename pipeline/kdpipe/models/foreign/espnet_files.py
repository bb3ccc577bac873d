"""Which files of an ESPnet2 experiment or packed model belong to one recogniser.

A packed model says so in its `meta.yaml`; an experiment folder by its names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kdpipe.errors import ModelFormatError
from kdpipe.models.foreign.files import PublishedFiles, parse_yaml

__all__ = ["MainFiles", "choose_files", "read_beside"]

META = "meta.yaml"
CONFIG = "config.yaml"
# Checkpoints for resuming hold optimisers too; they are no model files.
TRAINING_STATES = ("checkpoint.pth",)
PREFERRED = (r"valid\.acc\.ave.*", r"valid\..*\.ave.*", r"valid\.acc\.best", r".*")


@dataclass(frozen=True, slots=True)
class MainFiles:
    """Names of config and weights, and the ESPnet version that packed them ("" if unknown)."""

    config: str
    weights: str
    version: str


def choose_files(files: PublishedFiles, config: str | None, weights: str | None) -> MainFiles:
    """The files that `meta.yaml` or their names point to, unless `config`, `weights` say it.

    Raises `ModelFormatError` where there is none, or several and no reason to take one.
    """
    meta_name = _shallowest(META, files.names)
    meta = None if meta_name is None else parse_yaml(files.read(meta_name), _at(files, meta_name))
    chosen = _named(files, config, "") if config else _config(files, meta, meta_name)
    if weights:
        return MainFiles(chosen, _named(files, weights, _folder(chosen)), _version(meta))
    if meta is not None and not config:
        listed = _listed(meta, "files", "asr_model_file", _at(files, meta_name))
        return MainFiles(chosen, _named(files, listed, _folder(meta_name)), _version(meta))
    return MainFiles(chosen, _best_weights(files, _folder(chosen)), _version(meta))


def read_beside(files: PublishedFiles, given: str, config: str) -> bytes:
    """The file that the config of that name calls `given`, from the folder training ran in.

    That is the root of a packed model, and two levels above an experiment folder. Only a
    relative path inside it is followed. Raises `ModelFormatError` where it is in neither.
    """
    folder = _folder(config)
    name = files.locate(given, folder)
    if name is not None:
        return files.read(name)
    relative = PurePosixPath(given)
    inside = not relative.is_absolute() and ".." not in relative.parts
    beside = (files.root.resolve() / folder).parent.parent / relative
    if inside and files.root.is_dir() and beside.is_file():
        return beside.read_bytes()
    problem = f"has no {given}"
    raise ModelFormatError(files.root, problem, f"Put {relative.name} into the folder")


def _version(meta: Mapping[str, object] | None) -> str:
    return str(meta.get("espnet", "")) if meta else ""


def _at(files: PublishedFiles, name: str | None) -> str:
    return f"{files.root}/{name}"


def _folder(name: str | None) -> str:
    return "" if name is None else PurePosixPath(name).parent.as_posix().removeprefix(".")


def _shallowest(base: str, names: Sequence[str]) -> str | None:
    """The one file of that name that lies above all others of the name."""
    found = [name for name in names if PurePosixPath(name).name == base]
    return min(found, key=lambda name: (name.count("/"), name), default=None)


def _named(files: PublishedFiles, given: str, folder: str) -> str:
    """The file called `given`, from `folder` or from the root; a name alone if it is unique."""
    inside = f"{folder}/{given}" if folder else given
    name = inside if inside in files.names else files.locate(given)
    if name is None:
        held = ", ".join(n for n in files.names if n.endswith(PurePosixPath(given).suffix))
        remedy = f"Choose from: {held}" if held else "Give the whole experiment folder"
        raise ModelFormatError(files.root, f"has no {given}", remedy)
    return name


def _config(files: PublishedFiles, meta: Mapping[str, object] | None, name: str | None) -> str:
    if meta is not None:
        listed = _listed(meta, "yaml_files", "asr_train_config", _at(files, name))
        return _named(files, listed, _folder(name))
    if CONFIG in files.names:
        return CONFIG
    folders = {_folder(name) for name in files.names if name.endswith(".pth")}
    found = [n for n in files.names if n.endswith(f"/{CONFIG}") and _folder(n) in folders]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(found)
        raise ModelFormatError(files.root, f"holds several models ({listed})", "Give --config")
    raise ModelFormatError(files.root, f"has no {CONFIG}", "Give the whole experiment folder")


def _listed(meta: Mapping[str, object], table: str, key: str, where: str) -> str:
    entries = meta.get(table)
    value = entries.get(key) if isinstance(entries, dict) else None
    if not isinstance(value, str):
        problem = f"{table}.{key} is missing: no speech recognition model"
        raise ModelFormatError(where, problem, "Give a packed asr model")
    return value


def _best_weights(files: PublishedFiles, folder: str) -> str:
    """The averaged weights, else the best, else the only ones; never a training checkpoint."""
    all_here = [n for n in files.names if n.endswith(".pth") and _folder(n) == folder]
    candidates = {PurePosixPath(name).stem: name for name in all_here}
    for state in TRAINING_STATES:
        candidates.pop(state.removesuffix(".pth"), None)
    for pattern in PREFERRED:
        fitting = [name for stem, name in candidates.items() if re.fullmatch(pattern, stem)]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            return _one_of(fitting, files)
    raise ModelFormatError(files.root, "holds no weights (*.pth)", "Give the experiment folder")


def _one_of(names: Sequence[str], files: PublishedFiles) -> str:
    """ESPnet links valid.X.ave.pth to one of its averages; other ties are the user's choice."""
    plain = [name for name in names if re.fullmatch(r"(.*/)?valid\.\w+\.ave\.pth", name)]
    if len(plain) == 1:
        return plain[0]
    listed = ", ".join(Path(name).name for name in names)
    raise ModelFormatError(files.root, f"holds several weights ({listed})", "Give --weights")
