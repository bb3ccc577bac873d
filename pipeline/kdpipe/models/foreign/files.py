"""The files of a model as it is published: a folder or a packed zip, read by name.

Nothing is unpacked to disk and nothing in these files is run: YAML through its safe loader,
weights through `torch.load(weights_only=True)`, arrays without pickle.
"""

from __future__ import annotations

import io
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

__all__ = [
    "PublishedFiles",
    "open_published",
    "parse_arrays",
    "parse_weights",
    "parse_yaml",
    "read_pickled",
]

READABLE = {".yaml", ".pth", ".npz", ".model"}
MOST_YAML = 1 << 22
"""Values and characters of a YAML file, every alias counted as what it stands for. ESPnet's configs
have aliases for lists that occur twice, and some thousand tokens; nested aliases grow without end.
"""


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
        with zipfile.ZipFile(path) as archive:
            listed = archive.namelist()
    except Exception as error:  # Damage shows as whatever the library trips over.
        raise ModelFormatError(path, f"not a zip file ({error})", "Download it again") from error
    names = [name for name in listed if PurePosixPath(name).suffix in READABLE]
    return PublishedFiles(path, tuple(sorted(names)), lambda name: _read_member(path, name))


def _open_folder(path: Path) -> PublishedFiles:
    found = [file for file in path.rglob("*") if file.suffix in READABLE and file.is_file()]
    names = sorted(file.relative_to(path).as_posix() for file in found)
    return PublishedFiles(path, tuple(names), lambda name: (path / name).read_bytes())


def _read_member(path: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(name)
    except Exception as error:  # Damage shows as whatever the library trips over.
        raise ModelFormatError(path, f"{name} is damaged ({error})", "Download it again") from error


def parse_yaml(content: bytes, where: str) -> dict[str, Any]:
    """A YAML mapping of plain values; tags that would build objects are refused."""
    try:
        table = _load_yaml(content)
    except Exception as error:  # Values of a wrong form show as whatever their reader trips over.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelFormatError(
            where, f"no plain YAML ({reason})", "Take the original file"
        ) from error
    if not isinstance(table, dict) or not all(isinstance(key, str) for key in table):
        raise ModelFormatError(where, "not a table of settings", "Take the original file")
    return table


def _load_yaml(content: bytes) -> object:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(content)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _require_bounded(root)
        table: object = loader.construct_document(root)
        return table
    finally:
        loader.dispose()


def _require_bounded(root: yaml.Node) -> None:
    """Raise `ValueError` where aliases stand for more than a config can hold."""
    waiting, seen = [root], 0
    while waiting:
        node = waiting.pop()
        seen += 1 + len(node.value)
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
        if seen > MOST_YAML:
            raise ValueError("its aliases stand for too much")


def read_pickled(source: Path | io.BytesIO) -> object:
    """What `torch.save` wrote, plain tensors and containers only; nothing in it is run.

    Raises `ValueError` for anything else.
    """
    try:
        with warnings.catch_warnings():
            # It warns of pickle versions that it then refuses or reads.
            warnings.simplefilter("ignore", UserWarning)
            content: object = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # Damage shows as whatever the library trips over.
        reason = str(error).strip().split("\n")[0]
        raise ValueError(reason or type(error).__name__) from error
    return content


def parse_weights(content: bytes, where: str) -> dict[str, Tensor]:
    """Named tensors; a pickle that holds anything else is refused before it can run."""
    remedy = "Take the original weights; nothing but plain tensors is ever loaded"
    try:
        state = read_pickled(io.BytesIO(content))
    except ValueError as error:
        raise ModelFormatError(where, f"no plain weights ({error})", remedy) from error
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
    except Exception as error:  # Damage shows as whatever the library trips over.
        problem = f"does not hold plain arrays {', '.join(names)} ({error})"
        raise ModelFormatError(where, problem, "Take the original file") from error
