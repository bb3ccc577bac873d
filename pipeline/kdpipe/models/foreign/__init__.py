"""Models trained elsewhere, read into ours."""

from __future__ import annotations

from kdpipe.models.foreign.espnet import ForeignModel, read_espnet

__all__ = ["ForeignModel", "read_espnet"]
