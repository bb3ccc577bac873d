"""The model directory of a Hugging Face teacher: `model.toml` and the model's files in `hf/`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdpipe.config import parse_table
from kdpipe.errors import ConfigError, ModelFormatError
from kdpipe.files import json_digest, sha256_file

__all__ = ["HF_FOLDER", "HF_KIND", "HfCard", "is_hf_teacher", "read_hf_card", "teacher_digest"]

HF_KIND = "hf-seq2seq"
HF_FOLDER = "hf"
FORMAT_VERSION = 1
RESTORE = "Import the model again"


@dataclass(frozen=True)
class HfCard:
    """What `model.toml` of a Hugging Face teacher says.

    `files` maps every file in `hf/` to its SHA-256; `language` and `task` are Whisper's ("" where
    the model takes none).
    """

    kind: str
    name: str
    model_type: str
    files: Mapping[str, Any]
    language: str
    task: str
    kdpipe_version: str
    format_version: int = FORMAT_VERSION


def is_hf_teacher(path: Path) -> bool:
    """Whether a model directory holds a Hugging Face teacher."""
    try:
        table = tomllib.loads((path / "model.toml").read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return False
    return table.get("kind") == HF_KIND


def read_hf_card(path: Path) -> HfCard:
    """Read and check a Hugging Face teacher's directory, every file by its SHA-256.

    Raises `ModelFormatError` where it is of a newer format, damaged or changed.
    """
    file = path / "model.toml"
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
        card = parse_table(HfCard, table, str(file))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ModelFormatError(file, f"cannot be read ({error})", RESTORE) from error
    except ConfigError as error:
        raise ModelFormatError(file, error.message, error.remedy) from error
    if card.format_version != FORMAT_VERSION:
        found = f"format version {card.format_version}, not {FORMAT_VERSION}"
        raise ModelFormatError(file, found, "Use a matching kdpipe")
    for name, digest in card.files.items():
        part = path / HF_FOLDER / Path(name).name
        if not part.is_file() or sha256_file(part) != digest:
            raise ModelFormatError(part, "missing, or not the file that was imported", RESTORE)
    return card


def teacher_digest(card: HfCard) -> str:
    """The identity of the teacher: SHA-256 of the list of its files' digests."""
    return json_digest(dict(card.files))
