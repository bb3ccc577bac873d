"""Whether a store's targets fit a student's data."""

from __future__ import annotations

from kdpipe.errors import MismatchError
from kdpipe.store.schema import StoreHeader

__all__ = ["check_compatible"]

REMEDY = "Dump the teacher again on this data, or train on the data the store was made from"


def check_compatible(
    header: StoreHeader,
    tokenizer_fingerprint: str | None = None,
    vocab_size: int | None = None,
    subsampling: int | None = None,
    feature_digest: str | None = None,
) -> None:
    """Raise `MismatchError`, naming both sides, where the student differs from the store.

    What is None is not compared. Teachers may differ: any teacher of the tokenizer will do.
    """
    pairs = {
        "the tokenizer": (tokenizer_fingerprint, header.tokenizer.fingerprint),
        "the vocabulary size": (vocab_size, header.tokenizer.vocab_size),
        "the subsampling": (subsampling, header.subsampling),
        "the features": (feature_digest, header.feature_digest),
    }
    for what, (ours, theirs) in pairs.items():
        if ours is not None and ours != theirs:
            raise MismatchError(what, ours, theirs, REMEDY)
