"""Cache an autoregressive recogniser's outputs once; distil them into fast Mask-CTC students.

The public names::

    store = kdpipe.open_store("exp/train.zarr")  # numpy only, torch is not imported
    store["utt-1"].nbest
    model = kdpipe.load_model("exp/student")
    kdpipe.decode(model, [waveform])  # [["TEXT", ...]], best first
    kdpipe.read_manifest("train.jsonl")[0].text
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdpipe.checkpoint import load_model
    from kdpipe.corpus.manifest import read_manifest
    from kdpipe.stages.api import decode
    from kdpipe.store import open_store

__all__ = ["decode", "load_model", "open_store", "read_manifest"]

# Imported on first use: whoever only reads a store need not wait for torch, or have it.
_HOMES = {
    "decode": "kdpipe.stages.api",
    "load_model": "kdpipe.checkpoint",
    "open_store": "kdpipe.store",
    "read_manifest": "kdpipe.corpus.manifest",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kdpipe' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
