"""The kinds of features there are, and how files name them.

Prepared data and model directories carry the table that `describe()` gives; a student trained
on prepared data computes from audio what its data holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from kdpipe.config import parse_table
from kdpipe.errors import ConfigError, DataError
from kdpipe.features.espnet_filterbank import EspnetFilterbank
from kdpipe.features.filterbank import KaldiFilterbank

__all__ = ["Filterbank", "read_filterbank"]

Filterbank = KaldiFilterbank | EspnetFilterbank
KINDS: dict[str, type[Filterbank]] = {
    "kaldi-fbank": KaldiFilterbank,
    "espnet-filterbank": EspnetFilterbank,
}
# Beside the filterbank's own keys: which channel of the audio it was computed from.
CHANNEL = "channel"


def read_filterbank(table: Mapping[str, Any], where: str) -> Filterbank:
    """The features that a table describes; the inverse of their `describe()`.

    Raises `DataError` for features that this version cannot compute.
    """
    wanted = {name: value for name, value in table.items() if name != CHANNEL}
    found = _guess(wanted, where)
    if found is None or found.describe() != wanted:
        problem = f"unknown features ({_listed(wanted)})"
        raise DataError(where, problem, "Use a matching kdpipe, or prepare and train again")
    return found


def _guess(table: Mapping[str, Any], where: str) -> Filterbank | None:
    """The kind that the table names, with those of its settings that can be."""
    kind = KINDS.get(str(table.get("kind")))
    if kind is None:
        return None
    names = {item.name for item in fields(kind)}
    try:
        return parse_table(kind, {n: v for n, v in table.items() if n in names}, where)
    except ConfigError:
        return None


def _listed(table: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value!r:.40}" for name, value in sorted(table.items()))
