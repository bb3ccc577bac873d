"""The joint beam search as one would first write it: the oracle and the benchmark's baseline.

One utterance at a time, the decoder run over whole prefixes, the CTC forward recursion run
frame by frame for every candidate, ordinary Python lists for the hypotheses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdpipe.models import Encoded, RecognitionModel
from kdpipe.search.joint_beam import ArHypothesis

LOG_ZERO = -1.0e10
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Running:
    """A hypothesis that has not ended; `forward` is its CTC (T, 2) label and blank variables."""

    tokens: tuple[int, ...]
    score: float
    attention: float
    ctc: float
    forward: Array


@torch.inference_mode()
def reference_search(
    model: RecognitionModel,
    encoded: Encoded,
    beam: int = 10,
    ctc_weight: float = 0.3,
    nbest: int = 10,
    length_bonus: float = 0.0,
    max_length_ratio: float = 0.0,
    min_length_ratio: float = 0.0,
    pre_beam_ratio: float = 1.5,
) -> list[list[ArHypothesis]]:
    """`joint_beam_search`, utterance by utterance and without its early stop."""
    results = []
    for hidden, length in zip(encoded.hidden, encoded.lengths.tolist(), strict=True):
        if length == 0:
            results.append([ArHypothesis((), 0.0, 0.0, 0.0)])
            continue
        alone = hidden[None, :length]
        log_probs = model.ctc_log_probs(alone)[0].double().numpy()
        longest = max(1, int(max_length_ratio * length)) if max_length_ratio else length
        shortest = min(int(min_length_ratio * length), longest)
        running = [Running((), 0.0, 0.0, 0.0, initial_forward(log_probs))]
        ended: list[ArHypothesis] = []
        for step in range(longest):
            extended = []
            attention = next_token_scores(model, alone, running)
            for hypothesis, scores in zip(running, attention, strict=True):
                extended += extend(
                    hypothesis,
                    scores,
                    log_probs,
                    ctc_weight,
                    length_bonus,
                    int(pre_beam_ratio * beam),
                    may_end=step >= shortest,
                )
            extended.sort(key=lambda item: -item[0].score)
            best = extended[:beam]
            ended += [completed(item) for item, ends in best if ends]
            running = [item for item, ends in best if not ends]
            if step == longest - 1:
                ended += [completed(item) for item in running]
            if end_detected(ended, step) or not running:
                break
        ended.sort(key=lambda item: -item.score)
        best_ended = ended[:nbest]
        spelled = [item for item in best_ended if item.ctc > LOG_ZERO / 2]
        results.append(spelled or best_ended[:1])
    return results


def next_token_scores(model: RecognitionModel, hidden: Tensor, running: list[Running]) -> Tensor:
    """(K, V) attention log-probs after each prefix; all prefixes have one length."""
    sos = model.config.vocab_size - 1
    tokens = torch.tensor([[sos, *hypothesis.tokens] for hypothesis in running])
    count, size = tokens.shape
    frames = torch.full((count,), hidden.shape[1])
    repeated = Encoded(hidden.expand(count, -1, -1), frames)
    logits = model.decoder_logits(repeated, tokens, torch.full((count,), size))
    return logits[:, -1].log_softmax(-1)


def extend(
    hypothesis: Running,
    attention: Tensor,
    log_probs: Array,
    ctc_weight: float,
    length_bonus: float,
    pre_beam: int,
    may_end: bool,
) -> list[tuple[Running, bool]]:
    """Every candidate extension, in order of token id, and whether it ends the sentence."""
    vocabulary = len(attention)
    if ctc_weight == 1.0:
        pre_beam = vocabulary
    eos = vocabulary - 1
    excluded = ({0} if ctc_weight else set()) | (set() if may_end else {eos})
    order = torch.sort(attention, descending=True, stable=True).indices.tolist()
    candidates = sorted([token for token in order if token not in excluded][:pre_beam])
    candidates = [token for token in candidates if token != eos]
    prefix_scores, forwards = ctc_extensions(
        log_probs, hypothesis.forward, hypothesis.tokens, candidates
    )
    extensions = []
    for token, ctc, forward in zip(candidates, prefix_scores, forwards, strict=True):
        extensions.append((token, float(ctc) if ctc_weight else 0.0, forward))
    if may_end:
        total = float(np.logaddexp(*hypothesis.forward[-1])) if ctc_weight else 0.0
        extensions.append((eos, total, hypothesis.forward))
    results = []
    for token, ctc, forward in extensions:
        total_attention = hypothesis.attention + float(attention[token])
        bonus = length_bonus * (len(hypothesis.tokens) + 1)
        score = (1 - ctc_weight) * total_attention + ctc_weight * ctc + bonus
        tokens = hypothesis.tokens if token == eos else (*hypothesis.tokens, token)
        results.append((Running(tokens, score, total_attention, ctc, forward), token == eos))
    return results


def initial_forward(log_probs: Array) -> Array:
    """Label and blank forward variables of the empty prefix, (T, 2)."""
    blank = np.cumsum(log_probs[:, 0])
    return np.stack([np.full_like(blank, LOG_ZERO), blank], axis=1)


def ctc_extensions(
    log_probs: Array, previous: Array, prefix: tuple[int, ...], candidates: list[int]
) -> tuple[Array, list[Array]]:
    """Prefix log-probability and forward variables of prefix + each candidate.

    Algorithm 2 of Watanabe et al. 2017, all candidates at once.
    """
    emitted = log_probs[:, np.array(candidates, dtype=int)]
    either = np.logaddexp(previous[:, 0], previous[:, 1])
    last = prefix[-1] if prefix else -1
    phi = np.tile(either[:, None], (1, len(candidates)))
    phi[:, np.array(candidates, dtype=int) == last] = previous[:, 1:]
    label = np.full_like(emitted, LOG_ZERO)
    blank = np.full_like(emitted, LOG_ZERO)
    if not prefix:
        label[0] = emitted[0]
    score = label[0].copy()
    for t in range(1, len(log_probs)):
        label[t] = np.logaddexp(label[t - 1], phi[t - 1]) + emitted[t]
        blank[t] = np.logaddexp(label[t - 1], blank[t - 1]) + log_probs[t, 0]
        score = np.logaddexp(score, phi[t - 1] + emitted[t])
    forwards = [np.stack([label[:, i], blank[:, i]], axis=1) for i in range(len(candidates))]
    return score, forwards


def completed(item: Running) -> ArHypothesis:
    return ArHypothesis(item.tokens, item.score, item.attention, item.ctc)


def end_detected(ended: list[ArHypothesis], step: int) -> bool:
    """No hypothesis of the lengths step-2, step-3, step-4 within 10 nats of the best."""
    if not ended:
        return False
    best = max(item.score for item in ended)
    for length in (step - 2, step - 3, step - 4):
        same = [item.score for item in ended if len(item.tokens) == length]
        if not same or max(same) - best >= -10.0:
            return False
    return True


@torch.inference_mode()
def sequence_score(
    model: RecognitionModel, hidden: Tensor, tokens: tuple[int, ...]
) -> tuple[float, float]:
    """Attention log-prob with end of sentence, and CTC log-prob, of one whole hypothesis."""
    sos = model.config.vocab_size - 1
    inputs = torch.tensor([[sos, *tokens]])
    encoded = Encoded(hidden[None], torch.tensor([len(hidden)]))
    logits = model.decoder_logits(encoded, inputs, torch.tensor([inputs.shape[1]]))[0]
    targets = torch.tensor([*tokens, sos])
    attention = float(logits.log_softmax(-1).gather(1, targets[:, None]).sum())
    log_probs = model.ctc_log_probs(hidden[None])[0].double().numpy()
    forward = initial_forward(log_probs)
    prefix: tuple[int, ...] = ()
    for token in tokens:
        _, forwards = ctc_extensions(log_probs, forward, prefix, [token])
        forward, prefix = forwards[0], (*prefix, token)
    ctc = float(np.logaddexp(*forward[-1]))
    return attention, -math.inf if ctc < LOG_ZERO / 2 else ctc
