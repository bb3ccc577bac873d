"""The files of a model as it is published: a folder or a packed zip, read by name.

Nothing is unpacked to disk and nothing in these files is run: YAML through its safe loader,
weights through `torch.load(weights_only=True)`, arrays without pickle.
"""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from kdpipe.errors import InputNotFoundError, ModelFormatError

__all__ = ["PublishedFiles", "open_published", "parse_arrays", "parse_weights", "parse_yaml"]

READABLE = {".yaml", ".pth", ".npz", ".model"}


@dataclass(frozen=True)
class PublishedFiles:
    """What a folder or zip holds: posix names relative to its root, and their content."""

    root: Path
    names: tuple[str, ...]
    read: Callable[[str], bytes]

    def locate(self, given: str, folder: str = "") -> str | None:
        """The name of a file that a config in `folder` calls `given`, from wherever it was trained.

        The same path if it is there, else the only one that is a tail of it or has it as its own
        tail, else the file of that name beside the config, else the only one of that name.
        """
        beside = f"{folder}/{_base(given)}" if folder else _base(given)
        same = [name for name in self.names if _base(name) == _base(given)]
        tails = [
            n for n in same if n.endswith(f"/{given}") or ("/" in n and given.endswith(f"/{n}"))
        ]
        for candidates in ([given], tails, [beside], same):
            if len(candidates) == 1 and candidates[0] in self.names:
                return candidates[0]
        return None


def _base(name: str) -> str:
    return PurePosixPath(name).name


def open_published(path: Path) -> PublishedFiles:
    """Look into a folder or a zip file.

    Raises InputNotFoundError for a path that is neither, ModelFormatError for a broken zip.
    """
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise InputNotFoundError(path, "experiment folder or packed model", "Check the path")
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ModelFormatError(path, f"not a zip file ({error})", "Download it again") from error
    names = [name for name in archive.namelist() if PurePosixPath(name).suffix in READABLE]
    return PublishedFiles(path, tuple(sorted(names)), lambda name: _read_member(path, name))


def _open_folder(path: Path) -> PublishedFiles:
    found = [file for file in path.rglob("*") if file.suffix in READABLE and file.is_file()]
    names = sorted(file.relative_to(path).as_posix() for file in found)
    return PublishedFiles(path, tuple(names), lambda name: (path / name).read_bytes())


def _read_member(path: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(name)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ModelFormatError(path, f"{name} is damaged ({error})", "Download it again") from error


def parse_yaml(content: bytes, where: str) -> dict[str, Any]:
    """A YAML mapping of plain values; tags that would build objects are refused."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        table = yaml.load(content, Loader=loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ModelFormatError(
            where, f"no plain YAML ({error})", "Take the original file"
        ) from error
    if not isinstance(table, dict) or not all(isinstance(key, str) for key in table):
        raise ModelFormatError(where, "not a table of settings", "Take the original file")
    return table


def parse_weights(content: bytes, where: str) -> dict[str, Tensor]:
    """Named tensors; a pickle that holds anything else is refused before it can run."""
    remedy = "Take the original weights; nothing but plain tensors is ever loaded"
    try:
        with warnings.catch_warnings():
            # It warns of pickle versions that it then refuses or reads.
            warnings.simplefilter("ignore", UserWarning)
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelFormatError(where, f"no plain weights ({reason})", remedy) from error
    if not isinstance(state, Mapping) or not all(map(_is_weight, state.items())):
        raise ModelFormatError(where, "not a table of named tensors", remedy)
    return dict(state)


def _is_weight(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def parse_arrays(content: bytes, where: str, names: Sequence[str]) -> list[NDArray[np.float64]]:
    """Arrays of an npz file, without pickle."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            return [np.asarray(stored[name], dtype=np.float64) for name in names]
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        problem = f"does not hold plain arrays {', '.join(names)} ({error})"
        raise ModelFormatError(where, problem, "Take the original file") from error
