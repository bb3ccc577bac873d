"""Random-weight models whose outputs are overwritten so that a search ends as a trained one's.

Every encoder, decoder and CTC product is computed in full; then the log-probabilities that
come out are replaced by planted ones, looked up by utterance: a sentence of 2.9 tokens a
second, spoken as peaks of the CTC, with 3-8 doubtful tokens for Mask-CTC.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdpipe.models import Encoded, RecognitionModel, build_model, size_by_name
from kdpipe.models.config import Kind
from kdpipe.models.lengths import subsampled_lengths

__all__ = ["Planted", "Utterance", "make_utterances", "planted_model"]

TOKENS_PER_SECOND = 2.9
CONFUSIONS = 14


@dataclass(frozen=True)
class Utterance:
    """Random features (T, 80), 10 ms a frame, and the sentence planted for them."""

    features: Tensor
    tokens: tuple[int, ...]
    confidences: tuple[float, ...]

    @property
    def seconds(self) -> float:
        return len(self.features) / 100.0


@dataclass(frozen=True)
class Planted:
    """Log-probabilities of one utterance: CTC (T', V), causal (steps, V), masked (L, V+1)."""

    ctc: Tensor
    causal: Tensor
    masked: Tensor


def make_utterances(count: int, shortest: float, longest: float, vocab: int) -> list[Utterance]:
    """Utterances of evenly spread durations (seconds), the same on every call."""
    generator = torch.Generator().manual_seed(20)
    utterances = []
    for index in range(count):
        share = index / max(1, count - 1)
        frames = int(100 * (shortest + (longest - shortest) * share))
        size = max(1, round(TOKENS_PER_SECOND * frames / 100))
        tokens = torch.randint(2, vocab - 1, (size,), generator=generator)
        doubtful = int(torch.randint(3, 9, (), generator=generator))
        confidences = torch.full((size,), 0.996)
        chosen = torch.randperm(size, generator=generator)[:doubtful]
        confidences[chosen] = 0.4 + 0.55 * torch.rand(len(chosen), generator=generator)
        features = torch.randn(frames, 80, generator=generator)
        utterances.append(Utterance(features, tuple(tokens.tolist()), tuple(confidences.tolist())))
    order = torch.randperm(count, generator=generator).tolist()
    return [utterances[index] for index in order]


def planted_model(
    size: str, kind: Kind, utterances: Sequence[Utterance], vocab: int
) -> RecognitionModel:
    """A random model of a named size that answers with what is planted."""
    torch.manual_seed(4)
    model = build_model(size_by_name(size, vocab, kind)).eval()
    plants = [_plant(utterance, vocab) for utterance in utterances]
    names: dict[float, int] = {}
    _name_frames(model, utterances, names)
    model.ctc_log_probs = _planted_ctc(model, plants, names)  # type: ignore[method-assign]
    decoder: Any = model.decoder
    memories: dict[float, int] = {}
    decoder.project_memory = _named_memory(decoder.project_memory, names, memories)
    if kind == "ar":
        decoder.step = _planted_step(decoder.step, plants, memories)
        model.decoder_logits = _planted_logits(  # type: ignore[method-assign]
            model.decoder_logits, plants, names
        )
    else:
        decoder.forward_with_memory = _planted_fill(decoder.forward_with_memory, plants, memories)
    return model


def _plant(utterance: Utterance, vocab: int) -> Planted:
    generator = torch.Generator().manual_seed(len(utterance.features))
    confusions = torch.randint(
        2, vocab - 1, (len(utterance.tokens) + 1, CONFUSIONS), generator=generator
    )
    return Planted(
        _plant_ctc(utterance, vocab),
        _plant_causal(utterance, vocab, confusions),
        _plant_masked(utterance, vocab, confusions),
    )


def _plant_ctc(utterance: Utterance, vocab: int) -> Tensor:
    """Peaks at even distances, blank between them."""
    frames = subsampled_lengths(len(utterance.features))
    posteriors = torch.full((frames, vocab), 0.002 / vocab)
    posteriors[:, 0] = 0.998
    step = frames / len(utterance.tokens)
    for index, (token, sure) in enumerate(
        zip(utterance.tokens, utterance.confidences, strict=True)
    ):
        frame = int((index + 0.5) * step)
        posteriors[frame] = 0.1 * (1 - sure) / vocab
        posteriors[frame, 0] = 0.3 * (1 - sure)
        posteriors[frame, token] = sure
    return _log_normalised(posteriors)


def _plant_causal(utterance: Utterance, vocab: int, confusions: Tensor) -> Tensor:
    """Nine parts in ten on the right token, the rest on a few others; sure of the end."""
    size = len(utterance.tokens)
    posteriors = torch.full((2 * size + 40, vocab), 0.005 / vocab)
    for step in range(len(posteriors)):
        posteriors[step, confusions[min(step, size)]] = 0.095 / CONFUSIONS
        best = utterance.tokens[step] if step < size else vocab - 1
        posteriors[step, best] = 0.9
    return _log_normalised(posteriors)


def _plant_masked(utterance: Utterance, vocab: int, confusions: Tensor) -> Tensor:
    """As sure of a token as the CTC is, or surer: what the other tokens tell helps."""
    size = len(utterance.tokens)
    posteriors = torch.full((size, vocab + 1), 0.005 / vocab)
    for index, (token, sure) in enumerate(
        zip(utterance.tokens, utterance.confidences, strict=True)
    ):
        better = math.sqrt(sure)
        posteriors[index, confusions[index]] = (1 - better) / CONFUSIONS
        posteriors[index, token] = better
    return _log_normalised(posteriors)


def _log_normalised(weights: Tensor) -> Tensor:
    """Log-posteriors; every weight is first changed a little, so that none tie exactly."""
    noise = torch.rand(weights.shape, generator=torch.Generator().manual_seed(weights.shape[0]))
    weights = weights * (0.7 + 0.6 * noise)
    return (weights / weights.sum(1, keepdim=True)).log()


def _name_frames(
    model: RecognitionModel, utterances: Sequence[Utterance], names: dict[float, int]
) -> None:
    """Remember each utterance by the first number of its first encoder frame, however batched."""
    encode = model.encode
    starts = {float(utterance.features[0, 0]): i for i, utterance in enumerate(utterances)}

    def encode_named(features: Tensor, lengths: Tensor) -> Encoded:
        encoded = encode(features, lengths)
        for start, key in zip(
            features[:, 0, 0].tolist(), encoded.hidden[:, 0, 0].tolist(), strict=True
        ):
            names[key] = starts[start]
        return encoded

    model.encode = encode_named  # type: ignore[method-assign]


def _planted_ctc(
    model: RecognitionModel, plants: Sequence[Planted], names: dict[float, int]
) -> Any:
    compute = model.ctc_log_probs
    kept: dict[tuple[int, ...], Tensor] = {}

    def planted(hidden: Tensor) -> Tensor:
        compute(hidden)
        rows = tuple(names[key] for key in hidden[:, 0, 0].tolist())
        if rows not in kept:
            parts = [plants[row].ctc for row in rows]
            kept[rows] = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
        return kept[rows]

    return planted


def _named_memory(project: Any, names: dict[float, int], memories: dict[float, int]) -> Any:
    def named(hidden: Tensor, lengths: Tensor) -> Any:
        memory = project(hidden, lengths)
        keys = memory.keys[0][:, 0, 0, 0].tolist()
        for key, frame in zip(keys, hidden[:, 0, 0].tolist(), strict=True):
            memories[key] = names[frame]
        return memory

    return named


def _rows(memory: Any, memories: dict[float, int]) -> list[int]:
    return [memories[key] for key in memory.keys[0][:, 0, 0, 0].tolist()]


def _planted_step(step: Any, plants: Sequence[Planted], memories: dict[float, int]) -> Any:
    def planted(tokens: Tensor, cache: Any, memory: Any) -> Any:
        position = cache.length
        log_probs, cache = step(tokens, cache, memory)
        rows = _rows(memory, memories)
        values = torch.stack(
            [plants[row].causal[min(position, len(plants[row].causal) - 1)] for row in rows]
        )
        return values[:, None].expand_as(log_probs), cache

    return planted


def _planted_logits(compute: Any, plants: Sequence[Planted], names: dict[float, int]) -> Any:
    def planted(encoded: Encoded, tokens: Tensor, lengths: Tensor) -> Tensor:
        logits = compute(encoded, tokens, lengths)
        row = names[float(encoded.hidden[0, 0, 0])]
        values = plants[row].causal[: tokens.shape[1]]
        return values.expand_as(logits)

    return planted


def _planted_fill(fill: Any, plants: Sequence[Planted], memories: dict[float, int]) -> Any:
    def planted(tokens: Tensor, lengths: Tensor, memory: Any, wanted: Tensor) -> Tensor:
        fill(tokens, lengths, memory, wanted)
        rows = _rows(memory, memories)
        batch, _, position = wanted.nonzero(as_tuple=True)
        return torch.cat(
            [plants[row].masked[position[batch == index]] for index, row in enumerate(rows)]
        )

    return planted
