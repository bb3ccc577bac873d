"""From features to text, by whichever search the model and the user call for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from kdpipe.batching import Batch
from kdpipe.errors import ConfigError
from kdpipe.models import Encoded, RecognitionModel
from kdpipe.search.ctc_greedy import ctc_greedy
from kdpipe.search.joint_beam import joint_beam_search
from kdpipe.search.mask_ctc import mask_ctc_search
from kdpipe.text.tokenizer import Tokenizer

__all__ = [
    "DecodeMode",
    "Hypothesis",
    "SearchSettings",
    "check_search",
    "read_tokens",
    "recognise",
    "resolve_mode",
]

DecodeMode = Literal["auto", "ctc", "mask-ctc", "ar"]


@dataclass(frozen=True)
class SearchSettings:
    """Every setting of the three searches; each search reads its own."""

    mode: DecodeMode = "auto"
    beam: int = 10
    nbest: int = 1
    ctc_weight: float = 0.3
    tokens_per_iteration: int = 2
    mask_threshold: float = 0.99
    ctc_rescoring: float = 0.0


@dataclass(frozen=True)
class Hypothesis:
    """A recognised token sequence and its log-score (nats)."""

    tokens: tuple[int, ...]
    score: float


def resolve_mode(mode: DecodeMode, kind: str) -> DecodeMode:
    """What `auto` means for a model of `kind`.

    Raises `ConfigError` for a search that the model's decoder cannot do.
    """
    own: DecodeMode = "ar" if kind == "ar" else "mask-ctc"
    if mode in ("auto", own):
        return own
    if mode != "ctc":
        raise ConfigError(
            "decode", "--mode", mode, f"a {kind} model has no {mode} decoder",
            f"Use --mode auto, ctc or {own}",
        )  # fmt: skip
    return mode


def check_search(settings: SearchSettings, kind: str) -> None:
    """Refuse what no search of a model of `kind` gives, before anything is computed.

    Raises `ConfigError` as `resolve_mode` does, and for more hypotheses than a search ends with.
    """
    mode = resolve_mode(settings.mode, kind)
    most = 1 if mode == "ctc" else settings.beam
    if settings.nbest > most:
        raise ConfigError(
            "decode", "--nbest", settings.nbest, f"the {mode} search ends with {most} at most",
            "Use --nbest 1" if mode == "ctc" else f"Use --nbest {most} or --beam {settings.nbest}",
        )  # fmt: skip


def read_tokens(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """The text of recognised tokens; blank and sos/eos read as nothing.

    They are classes like any other: a barely trained CTC head emits sos/eos, and attention
    alone (CTC weight 0) blank.
    """
    silent = (tokenizer.blank_id, tokenizer.sos_eos_id)
    return tokenizer.decode(token for token in tokens if token not in silent)


@torch.inference_mode()
def recognise(
    model: RecognitionModel, batch: Batch, settings: SearchSettings
) -> list[list[Hypothesis]]:
    """The `nbest` best hypotheses of every utterance, best first; at least one each.

    Utterances too short for the encoder get the empty hypothesis.
    """
    encoded = model.encode(batch.features, batch.feature_lengths)
    mode = resolve_mode(settings.mode, model.config.kind)
    found = _SEARCHES[mode](model, encoded, settings)
    return [hypotheses or [Hypothesis((), 0.0)] for hypotheses in found]


def _greedy(
    model: RecognitionModel, encoded: Encoded, settings: SearchSettings
) -> list[list[Hypothesis]]:
    found = ctc_greedy(model.ctc_log_probs(encoded.hidden), encoded.lengths)
    return [[Hypothesis(tuple(h.tokens), h.score)] for h in found]


def _mask_ctc(
    model: RecognitionModel, encoded: Encoded, settings: SearchSettings
) -> list[list[Hypothesis]]:
    found = mask_ctc_search(
        model,
        encoded,
        beam=settings.beam,
        tokens_per_iteration=settings.tokens_per_iteration,
        mask_threshold=settings.mask_threshold,
        nbest=settings.nbest,
        ctc_rescoring_weight=settings.ctc_rescoring,
    )
    return [[Hypothesis(tuple(h.tokens), h.score) for h in hypotheses] for hypotheses in found]


def _joint(
    model: RecognitionModel, encoded: Encoded, settings: SearchSettings
) -> list[list[Hypothesis]]:
    found = joint_beam_search(
        model,
        encoded,
        beam=settings.beam,
        ctc_weight=settings.ctc_weight,
        nbest=settings.nbest,
    )
    return [[Hypothesis(tuple(h.tokens), h.score) for h in hypotheses] for hypotheses in found]


_SEARCHES = {"ctc": _greedy, "mask-ctc": _mask_ctc, "ar": _joint}
