"""Mask-CTC filling by enumeration: Algorithm 1 word for word, nothing pruned."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from kdpipe.models import Encoded, RecognitionModel

Tokens = tuple[int, ...]


def posteriors(model: RecognitionModel, hidden: Tensor, tokens: Tokens) -> Tensor:
    """(L, V+1) log-posteriors given the observed tokens; what may not be emitted is -inf."""
    with torch.inference_mode():
        encoded = Encoded(hidden[None], torch.tensor([len(hidden)]))
        inputs = torch.tensor([tokens])
        logits = model.decoder_logits(encoded, inputs, torch.tensor([len(tokens)]))[0]
        log_probs = logits.double().log_softmax(-1)
        mask = model.config.vocab_size
        log_probs[:, [0, 1, mask - 1, mask]] = -torch.inf
    return log_probs


def every_filling(
    log_probs: Tensor, tokens: Tokens, mask: int, size: int
) -> list[tuple[float, Tokens]]:
    """All ways to fill `size` of the masks, with their scores."""
    positions = [index for index, token in enumerate(tokens) if token == mask]
    allowed = [
        [token for token, value in enumerate(log_probs[index].tolist()) if value > -torch.inf]
        for index in range(len(tokens))
    ]
    results = []
    for chosen in itertools.combinations(positions, size):
        for words in itertools.product(*(allowed[index] for index in chosen)):
            filled = list(tokens)
            score = 0.0
            for index, word in zip(chosen, words, strict=True):
                filled[index] = word
                score += float(log_probs[index, word])
            results.append((score, tuple(filled)))
    return results


def algorithm_1(
    model: RecognitionModel, hidden: Tensor, tokens: Tokens, beam: int, size: int
) -> list[tuple[Tokens, float]]:
    """The final beam, best first, of sequences filled `size` masks an iteration."""
    mask = model.config.vocab_size
    hypotheses = {tokens: 0.0}
    while left := next(iter(hypotheses)).count(mask):
        extended: dict[Tokens, float] = {}
        for parent, score in hypotheses.items():
            fillings = every_filling(
                posteriors(model, hidden, parent), parent, mask, min(size, left)
            )
            # Line 5 of the algorithm: a hypothesis proposes its B best sets.
            for gain, filled in sorted(fillings, reverse=True)[:beam]:
                extended[filled] = max(extended.get(filled, -torch.inf), score + gain)
        hypotheses = dict(sorted(extended.items(), key=lambda item: -item[1])[:beam])
    return list(hypotheses.items())


def easy_first(
    model: RecognitionModel, hidden: Tensor, tokens: Tokens, size: int
) -> tuple[Tokens, float]:
    """Fill the `size` most probable masks at a time."""
    mask, score = model.config.vocab_size, 0.0
    while mask in tokens:
        values, words = posteriors(model, hidden, tokens).max(dim=1)
        masked = [index for index, token in enumerate(tokens) if token == mask]
        masked.sort(key=lambda index: -float(values[index]))
        filled = list(tokens)
        for index in masked[:size]:
            filled[index] = int(words[index])
            score += float(values[index])
        tokens = tuple(filled)
    return tokens, score
