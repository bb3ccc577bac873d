"""Errors carry their data, are builtins too, and cross processes whole."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from kdpipe.errors import (
    BusyOutputError,
    ConfigError,
    DataError,
    KdpipeError,
    MismatchError,
    OutputConflictError,
    TrainingDivergedError,
)

ERRORS = [
    (ConfigError("an4", "epochs", 0, "out of range", "Give 1 or more"), ValueError),
    (DataError("a.jsonl:3", "not JSON", "Mend the line"), ValueError),
    (MismatchError("the tokenizer", "a", "b", "Dump again"), ValueError),
    (OutputConflictError(Path("out"), ["beam: 1 -> 2"]), FileExistsError),
    (TrainingDivergedError(7, "ctc", ["a", "b"]), ArithmeticError),
    (BusyOutputError(Path("out")), BlockingIOError),
]


@pytest.mark.parametrize(("error", "builtin"), ERRORS, ids=lambda e: type(e).__name__)
def test_an_error_survives_pickling(error: KdpipeError, builtin: type[Exception]) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert isinstance(again, builtin)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
