"""Whether a model and prepared data fit each other: the same tokens, the same features."""

from __future__ import annotations

from kdpipe.checkpoint import ModelBundle
from kdpipe.errors import MismatchError
from kdpipe.features.prepared import PreparedData
from kdpipe.text.tokenizer import Tokenizer

__all__ = [
    "require_same_channel",
    "require_same_features",
    "require_same_filterbank",
    "require_same_tokenizer",
]


def require_same_tokenizer(bundle: ModelBundle, prepared: PreparedData) -> None:
    """Raise `MismatchError`, naming both, unless data and model have the same token ids."""
    ours, theirs = Tokenizer.load(prepared.tokenizer).fingerprint, bundle.tokenizer.fingerprint
    if ours != theirs:
        raise _mismatch("the tokenizer", ours[:12], theirs[:12], bundle, prepared)


def require_same_filterbank(bundle: ModelBundle, prepared: PreparedData) -> None:
    """Raise `MismatchError`, naming both, unless the data's features are of the model's kind."""
    ours, theirs = prepared.filterbank.describe(), bundle.filterbank.describe()
    if ours == theirs:
        return
    keys = ["kind"]
    if ours["kind"] == theirs["kind"]:
        keys = [key for key in theirs if ours[key] != theirs[key]]
    found, wanted = (", ".join(f"{key} {side[key]}" for key in keys) for side in (ours, theirs))
    raise _mismatch("the features", found, wanted, bundle, prepared)


def require_same_channel(bundle: ModelBundle, prepared: PreparedData) -> None:
    """Raise `MismatchError`, naming both, unless data and model hear the same channel."""
    found, channel = _channels(bundle, prepared)
    if found != channel:
        raise _mismatch("the audio channel", found, channel, bundle, prepared)


def require_same_features(bundle: ModelBundle, prepared: PreparedData) -> None:
    """Also unless they are of the same channel, with the same normalisation.

    Raises `MismatchError` as `require_same_filterbank` does.
    """
    require_same_filterbank(bundle, prepared)
    if bundle.card.feature_digest == prepared.feature_digest:
        return
    require_same_channel(bundle, prepared)
    ours, theirs = prepared.cmvn.describe(), bundle.cmvn.describe()
    raise _mismatch("the features' normalisation", ours, theirs, bundle, prepared)


def _channels(bundle: ModelBundle, prepared: PreparedData) -> tuple[object, object]:
    """The data's and the model's; of a model that does not say, the data's."""
    found = prepared.settings["features"]["channel"]
    return found, bundle.card.features.get("channel", found)


def _mismatch(
    what: str, ours: object, theirs: object, bundle: ModelBundle, prepared: PreparedData
) -> MismatchError:
    found, channel = _channels(bundle, prepared)
    # What --like does not take, and what would be refused next.
    heard = "" if found == channel else f" --channel {channel}"
    return MismatchError(
        f"{what} of the data {prepared.folder.name} (here) and of the model {bundle.card.name}"
        f" (there)",
        ours,
        theirs,
        f"Make the data with `kdpipe prepare --like {bundle.path}{heard}`, which takes the model's"
        " tokenizer and features",
    )
