"""import-teacher --from espnet2: a published ESPnet2 model becomes a model directory of ours.

Weights, token ids, features and normalisation are the model's own, so that every later stage
takes it as if it had been trained here.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kdpipe.checkpoint import ModelCard, load_model, read_card, save_model
from kdpipe.errors import KdpipeError, OutputConflictError
from kdpipe.features.prepared import feature_digest
from kdpipe.models import count_parameters
from kdpipe.models.foreign import ForeignModel, read_espnet
from kdpipe.stages.claim import settings_changes
from kdpipe.stages.imported import Imported
from kdpipe.text.token_list import bpe_tokenizer, char_tokenizer
from kdpipe.text.tokenizer import Tokenizer

__all__ = ["import_espnet"]

ASSUMED = (
    "this model takes features that were computed beforehand, and its files do not say how."
    " They are taken for Kaldi's 80-dimensional filterbank (ESPnet's feats_type fbank); if that"
    " is wrong, every posterior will be too: decode some speech and look before dumping"
)
STUDENT = (
    "this is a Mask-CTC model: decode it as a student; teacher-dump needs an autoregressive one"
)


def import_espnet(
    path: Path, out: Path, config: str | None = None, weights: str | None = None
) -> Imported:
    """Write the ESPnet2 experiment folder, snapshot or packed zip `path` as a model directory.

    `config` and `weights` name files inside `path` where it holds several. `out` appears at once
    and whole. Raises the errors of `read_espnet`, `DataError` where token list and bpe.model do
    not belong together, `OutputConflictError` where `out` is something else than this import.
    """
    foreign = read_espnet(path, config, weights)
    tokenizer = Tokenizer.from_bytes(_tokenizer(foreign), f"{path}: token_list")
    card = _card(foreign, tokenizer)
    made = not _is_there(out, card)
    if made:
        with _whole(out) as folder:
            (folder / "tokenizer.model").write_bytes(tokenizer.model)
            state = foreign.model.state_dict()
            save_model(folder, card, state, folder / "tokenizer.model", foreign.cmvn)
            load_model(folder)
    return Imported(out, made, _summary(foreign, card), _notes(foreign))


def _tokenizer(foreign: ForeignModel) -> bytes:
    if foreign.bpe_model is not None:
        return bpe_tokenizer(foreign.token_list, foreign.bpe_model)
    return char_tokenizer(foreign.token_list, foreign.has_symbols)


def _card(foreign: ForeignModel, tokenizer: Tokenizer) -> ModelCard:
    # ESPnet takes the first of several channels; of one, which it was trained on, mix is the same.
    features = {**foreign.filterbank.describe(), "channel": "mix"}
    return ModelCard(
        name=foreign.name,
        sizes=foreign.model.config,
        tokenizer_fingerprint=tokenizer.fingerprint,
        feature_type=str(features["kind"]),
        feature_digest=feature_digest(features, foreign.cmvn),
        manifest_digest="",
        seed=0,
        kdpipe_version=version("kdpipe"),
        features=features,
        source=_source(foreign),
    )


def _source(foreign: ForeignModel) -> dict[str, Any]:
    return {
        "toolkit": "espnet2",
        "version": foreign.version or "unknown",
        "token_type": foreign.token_type,
        "files": dict(sorted(foreign.files.items())),
    }


def _is_there(out: Path, card: ModelCard) -> bool:
    """Whether `out` is this import already; anything else there is refused."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        source: Mapping[str, Any] = read_card(out).source
    except KdpipeError:
        raise OutputConflictError(out, ["it holds files that are not of this command"]) from None
    changes = settings_changes(source, card.source)
    if changes:
        raise OutputConflictError(out, changes)
    return True


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` when everything in it is written."""
    folder = out.with_name(f".{out.name}.importing")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _summary(foreign: ForeignModel, card: ModelCard) -> str:
    kind = "autoregressive" if card.sizes.kind == "ar" else "Mask-CTC"
    millions = count_parameters(foreign.model) / 1e6
    return (
        f"{kind} {card.sizes.encoder}, {millions:.2f} M parameters,"
        f" {card.sizes.vocab_size} tokens ({foreign.token_type}), {card.feature_type},"
        f" {foreign.cmvn.describe()}"
    )


def _notes(foreign: ForeignModel) -> tuple[str, ...]:
    student = (STUDENT,) if foreign.model.config.kind == "mask-ctc" else ()
    return (ASSUMED, *student) if foreign.assumed_features else student
