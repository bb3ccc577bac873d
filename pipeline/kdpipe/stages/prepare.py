"""`kdpipe prepare`: manifests to features, tokens, CMVN and tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdpipe.checkpoint import card_filterbank, read_card
from kdpipe.corpus.utterance import Utterance
from kdpipe.errors import ConfigError, InputNotFoundError
from kdpipe.features.audio import Channel
from kdpipe.features.cmvn import AnyCmvn, Cmvn, load_cmvn
from kdpipe.features.filterbank import KaldiFilterbank
from kdpipe.features.kinds import Filterbank
from kdpipe.features.prepared import FORMAT_VERSION, PreparedData, feature_digest
from kdpipe.features.split_files import FEATURES, map_array
from kdpipe.files import json_digest, write_json, write_jsonl
from kdpipe.parallel import WorkerPool
from kdpipe.progress import progress
from kdpipe.stages.claim import claimed, mark_complete
from kdpipe.stages.prepare_split import make_split, split_rejections
from kdpipe.stages.prepare_worker import ChunkSettings, use_one_thread
from kdpipe.text.normalise import TextCase, TextSpaces, normalise
from kdpipe.text.tokenizer import Tokenizer, TokenizerKind, train_tokenizer

__all__ = ["PrepareSettings", "prepare"]

TOKENIZER = "tokenizer.model"
CMVN = "cmvn.safetensors"
CMVN_BLOCK_FRAMES = 1 << 16
SLOWEST, FASTEST = 0.5, 2.0


@dataclass(frozen=True)
class PrepareSettings:
    """What the prepared data depends on, beside the utterances.

    vocab_size: V with the special tokens; None takes every character. speeds: of the training
    split alone. frame_shift_ms: milliseconds from a feature frame to the next; None is 10, or what
    `like` has. like: a folder (prepared data or a model) whose tokenizer, kind of features and CMVN
    are taken instead of made from the training split.
    """

    tokenizer: TokenizerKind = "char"
    vocab_size: int | None = None
    speeds: tuple[float, ...] = (1.0,)
    frame_shift_ms: float | None = None
    channel: Channel = "mix"
    text_case: TextCase = "keep"
    text_spaces: TextSpaces = "keep"
    allow_unlabelled: bool = False
    like: Path | None = None

    def __post_init__(self) -> None:
        if self.like is not None and (self.tokenizer != "char" or self.vocab_size is not None):
            raise ConfigError(
                "prepare", "like", self.like, "the tokenizer is taken from there",
                "Leave --tokenizer and --vocab-size out, or --like",
            )  # fmt: skip
        if self.frame_shift_ms is not None:
            _check_shift(self.frame_shift_ms, self.like)
        good = all(SLOWEST <= s <= FASTEST and s == round(s, 2) for s in self.speeds)
        if not good or not self.speeds or len(set(self.speeds)) < len(self.speeds):
            raise ConfigError(
                "prepare",
                "speed",
                self.speeds,
                "not different factors from 0.5 to 2 with two decimals",
                "Give for example 0.9,1.0,1.1",
            )


def _check_shift(milliseconds: float, like: Path | None) -> None:
    if like is not None:
        raise ConfigError(
            "prepare", "like", like, "the kind of features is taken from there",
            "Leave --frame-shift out, or --like",
        )  # fmt: skip
    try:
        _kaldi(milliseconds)
    except ConfigError:
        raise ConfigError(
            "prepare", "frame_shift_ms", milliseconds, "not whole samples of 16 kHz from 2.5 to 20",
            "Give for example 7.5",
        ) from None  # fmt: skip


def prepare(
    splits: Mapping[str, Sequence[Utterance]],
    out: Path,
    settings: PrepareSettings,
    workers: int = 2,
    max_rejected: float = 0.05,
) -> bool:
    """Write the prepared data `out`; see `PreparedData` for reading it.

    `splits` has "train" unless `settings.like` is given. Returns False where `out` was already
    complete. `max_rejected` is the fraction of a split's entries that may be unusable. With
    more than one of the `workers`, which are spawned, a script needs its `__main__` guard.

    Raises `OutputConflictError` for an `out` of other settings or utterances,
    `TooManyRejectedError`, `ConfigError`, `OutputWriteError` for a full disk.
    """
    _check_training(splits, settings)
    claim = _claim(splits, settings)
    with claimed(out, claim) as complete:
        if complete:
            return False
        tokenizer = _provide_tokenizer(splits.get("train", ()), out, settings)
        with WorkerPool(workers, use_one_thread) as pool:
            summaries = _make_splits(splits, out, settings, tokenizer, pool, max_rejected)
        cmvn = _provide_cmvn(out, settings)
        write_json(out / "data.json", _describe(settings, tokenizer, cmvn, summaries))
        mark_complete(out, claim)
    return True


def _check_training(splits: Mapping[str, Sequence[Utterance]], settings: PrepareSettings) -> None:
    """Without a training split nothing gives a tokenizer, and nothing is made at other speeds."""
    if "train" in splits:
        return
    if settings.like is None:
        raise ConfigError(
            "prepare", "train", None, "no training split", "Give --train, or --like a folder"
        )
    if settings.speeds != (1.0,):
        raise ConfigError(
            "prepare", "speed", settings.speeds, "only a training split is made at other speeds",
            "Leave --speed out, or give --train",
        )  # fmt: skip


def _claim(
    splits: Mapping[str, Sequence[Utterance]], settings: PrepareSettings
) -> dict[str, object]:
    """Everything that decides the content of the folder, as plain JSON."""
    return {
        "splits": {name: _utterances_digest(utterances) for name, utterances in splits.items()},
        "tokenizer": settings.tokenizer,
        "vocab_size": settings.vocab_size,
        "speed": list(settings.speeds),
        "frame_shift_ms": _claimed_shift(settings.frame_shift_ms),
        "channel": settings.channel,
        "text_case": settings.text_case,
        "text_spaces": settings.text_spaces,
        "allow_unlabelled": settings.allow_unlabelled,
        "like": None if settings.like is None else _taken_digests(settings.like),
    }


def _claimed_shift(milliseconds: float | None) -> float | None:
    """None for the usual shift too: folders from before the option say nothing of it."""
    return None if _kaldi(milliseconds) == KaldiFilterbank() else milliseconds


def _taken_digests(like: Path) -> dict[str, str]:
    if not all((like / name).is_file() for name in (TOKENIZER, CMVN)):
        raise InputNotFoundError(
            like, f"{TOKENIZER} and {CMVN}", "Give --like prepared data or a model"
        )
    return {
        "tokenizer": Tokenizer.load(like / TOKENIZER).fingerprint[:12],
        "cmvn": load_cmvn(like / CMVN).digest()[:12],
        "features": json_digest(_filterbank_like(like).describe())[:12],
    }


def _filterbank_of(settings: PrepareSettings) -> Filterbank:
    """What the settings say; Kaldi's every 10 ms where they say nothing."""
    if settings.like is not None:
        return _filterbank_like(settings.like)
    return _kaldi(settings.frame_shift_ms)


def _kaldi(milliseconds: float | None) -> KaldiFilterbank:
    return KaldiFilterbank() if milliseconds is None else KaldiFilterbank(milliseconds / 1000)


def _filterbank_like(like: Path) -> Filterbank:
    """The features of prepared data or of a model."""
    if (like / "data.json").is_file():
        return PreparedData.open(like).filterbank
    return card_filterbank(read_card(like), like)


def _utterances_digest(utterances: Sequence[Utterance]) -> str:
    # What a header says is no setting: it changes when a file is mended.
    fields = [
        [u.id, str(u.audio), None if u.measured else u.duration, u.text, u.speaker, u.offset,
         u.segment]
        for u in utterances
    ]  # fmt: skip
    return f"{len(utterances)} utterances, {json_digest(fields)[:12]}"


def _provide_tokenizer(
    train: Sequence[Utterance], out: Path, settings: PrepareSettings
) -> Tokenizer:
    path = out / TOKENIZER
    if settings.like is not None:
        shutil.copyfile(settings.like / TOKENIZER, path)
    if path.is_file():
        return Tokenizer.load(path)
    texts = (normalise(u.text, settings.text_case, settings.text_spaces) for u in train if u.text)
    return train_tokenizer(texts, settings.tokenizer, settings.vocab_size, path)


def _make_splits(
    splits: Mapping[str, Sequence[Utterance]],
    out: Path,
    settings: PrepareSettings,
    tokenizer: Tokenizer,
    pool: WorkerPool,
    max_rejected: float,
) -> dict[str, dict[str, Any]]:
    summaries = {}
    filterbank = _filterbank_of(settings)
    try:
        for name, utterances in splits.items():
            chunk_settings = ChunkSettings(
                tokenizer=out.absolute() / TOKENIZER,
                fingerprint=tokenizer.fingerprint,
                filterbank=filterbank,
                channel=settings.channel,
                case=settings.text_case,
                spaces=settings.text_spaces,
                speeds=settings.speeds if name == "train" else (1.0,),
                allow_unlabelled=settings.allow_unlabelled,
                to_learn=name == "train",
            )
            summaries[name] = make_split(out / name, utterances, chunk_settings, pool, max_rejected)
    finally:
        found = (record for name in splits for record in split_rejections(out / name))
        write_jsonl(out / "rejected.jsonl", found)
    return summaries


def _provide_cmvn(out: Path, settings: PrepareSettings) -> AnyCmvn:
    if settings.like is not None:
        cmvn = load_cmvn(settings.like / CMVN)
    else:
        cmvn = _measure_cmvn(out / "train" / FEATURES)
    cmvn.save(out / CMVN)
    return cmvn


def _measure_cmvn(path: Path) -> Cmvn:
    """Over all frames of the training split, as stored, in float64."""
    features = map_array(path)
    total = np.zeros(features.shape[1])
    squares = np.zeros(features.shape[1])
    starts = range(0, len(features), CMVN_BLOCK_FRAMES)
    for start in progress(starts, len(starts), "prepare CMVN", "block"):
        block = features[start : start + CMVN_BLOCK_FRAMES].astype(np.float64)
        total += block.sum(axis=0)
        squares += np.einsum("tf,tf->f", block, block)
    return Cmvn.from_sums(len(features), torch.from_numpy(total), torch.from_numpy(squares))


def _describe(
    settings: PrepareSettings,
    tokenizer: Tokenizer,
    cmvn: AnyCmvn,
    summaries: Mapping[str, Mapping[str, Any]],
) -> dict[str, object]:
    features = {**_filterbank_of(settings).describe(), "channel": settings.channel}
    return {
        "format_version": FORMAT_VERSION,
        "features": features,
        "feature_digest": feature_digest(features, cmvn),
        "tokenizer": {
            "kind": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "fingerprint": tokenizer.fingerprint,
        },
        "text_case": settings.text_case,
        "text_spaces": settings.text_spaces,
        "speed": list(settings.speeds),
        "splits": dict(summaries),
    }
