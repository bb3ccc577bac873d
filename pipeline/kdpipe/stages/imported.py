"""What importing a model says about itself, whatever toolkit it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Imported"]


@dataclass(frozen=True)
class Imported:
    """A model directory that an import wrote, or found complete.

    `made` is False where the same files had been imported before; `summary` describes the model
    in a line, `notes` say what the user must know before using it.
    """

    out: Path
    made: bool
    summary: str
    notes: tuple[str, ...] = ()
