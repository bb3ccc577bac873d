"""The teacher store: what a teacher said about a corpus, kept small, safe and quick to read."""

from __future__ import annotations

from kdpipe.store.encode import EMPTY_POSTERIOR, kl_to_stored, sparsify
from kdpipe.store.finish import finish
from kdpipe.store.paths import store_state
from kdpipe.store.ragged import RaggedBatch, RaggedNbest, RaggedRows
from kdpipe.store.reader import TeacherStore, open_store
from kdpipe.store.schema import (
    Fidelity,
    SparsePosterior,
    StoredHypothesis,
    StoreHeader,
    TeacherIdentity,
    TokenizerIdentity,
    UtteranceTargets,
)
from kdpipe.store.summary import store_info
from kdpipe.store.writer import StoreWriter

__all__ = [
    "EMPTY_POSTERIOR",
    "Fidelity",
    "RaggedBatch",
    "RaggedNbest",
    "RaggedRows",
    "SparsePosterior",
    "StoreHeader",
    "StoreWriter",
    "StoredHypothesis",
    "TeacherIdentity",
    "TeacherStore",
    "TokenizerIdentity",
    "UtteranceTargets",
    "finish",
    "kl_to_stored",
    "open_store",
    "sparsify",
    "store_info",
    "store_state",
]
