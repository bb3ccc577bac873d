"""Whether a store's targets fit a student's data."""

from __future__ import annotations

from kdpipe.errors import MismatchError
from kdpipe.store.reader import TeacherStore
from kdpipe.store.schema import StoreHeader

__all__ = ["check_compatible", "check_frames"]

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


def check_frames(store: TeacherStore, frames: dict[str, int]) -> None:
    """Raise `MismatchError` unless the store holds every utterance with as many encoder frames."""
    ids = list(frames)
    missing = store.missing(ids)
    if missing:
        what = f"the set of utterances ({', '.join(missing[:3])} and others are not in the store)"
        raise MismatchError(what, len(ids), len(ids) - len(missing), REMEDY)
    for utterance, (stored, _) in zip(ids, store.lengths(ids).tolist(), strict=True):
        if stored != frames[utterance]:
            what = f"the number of encoder frames of {utterance}"
            raise MismatchError(what, frames[utterance], stored, REMEDY)
