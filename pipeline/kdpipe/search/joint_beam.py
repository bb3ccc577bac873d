"""Joint CTC/attention one-pass beam search, batched over utterances and hypotheses.

Watanabe et al. 2017, "Hybrid CTC/Attention Architecture for End-to-End Speech Recognition",
with the choices of ESPnet's batch beam search, whose results it reproduces:

- every step, each hypothesis is extended by its int(pre_beam_ratio * beam) best tokens under
  the attention decoder, and by the end of sentence in any case; the CTC rules out blank, and
  attention alone (w = 0) rules out nothing;
- a hypothesis g scores (1 - w) log p_att(g) + w psi_ctc(g) + bonus * |g|, psi being the CTC
  prefix log-probability, and of g as the whole sequence at the end of sentence;
- the `beam` best extensions of all are kept; those that end leave the beam;
- the search ends by end detection, or when no hypothesis is left, or at the maximum length,
  where what has not ended is cut off as it stands.

Beyond it, a search stops as soon as no running hypothesis can still enter the n-best: scores
only fall (with a bonus: rise by at most the bonus a token), so the result is the same.

Ties: the extension of the better-ranked hypothesis first, then the lower token id; of
completed hypotheses the one completed first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kdpipe.models import CausalDecoder, Encoded, RecognitionModel
from kdpipe.search.ctc_prefix import LOG_ZERO, initial_prefixes, tabulate_ctc
from kdpipe.search.ctc_score import ctc_sequence_scores
from kdpipe.search.finished import ArHypothesis, FinishedHypotheses
from kdpipe.search.inputs import causal_decoder, checked_lengths, select_encoded
from kdpipe.search.joint_step import Beam, JointSearch, advance
from kdpipe.search.settings import JointSettings, group_by_memory

__all__ = ["ArHypothesis", "joint_beam_search"]


@torch.inference_mode()
def joint_beam_search(
    model: RecognitionModel,
    encoded: Encoded,
    *,
    beam: int = 10,
    ctc_weight: float = 0.3,
    nbest: int = 10,
    length_bonus: float = 0.0,
    max_length_ratio: float = 0.0,
    min_length_ratio: float = 0.0,
    pre_beam_ratio: float = 1.5,
) -> list[list[ArHypothesis]]:
    """Up to `nbest` hypotheses of every utterance, best first.

    `max_length_ratio` and `min_length_ratio` bound the number of tokens as fractions of the
    encoder frames; a maximum of 0 means one token a frame. `length_bonus` (nats) is added
    for every token, the end of sentence included. `pre_beam_ratio` * `beam` at or above the
    vocabulary size lets the CTC score every token, as does `ctc_weight` 1. Hypotheses that
    the CTC cannot spell are left out unless `ctc_weight` is 0 or nothing else is found. An
    utterance of no frames has one empty hypothesis of score 0. A batch gives what each
    utterance gives alone; large batches are worked through in parts that fit the memory.

    Raises ConfigError for settings out of range, UtteranceTooLongError beyond `MAX_FRAMES`,
    MismatchError for a model that is not autoregressive or in training mode, DataError for
    frames that are not finite.
    """
    settings = JointSettings(
        beam,
        ctc_weight,
        nbest,
        length_bonus,
        max_length_ratio,
        min_length_ratio,
        pre_beam_ratio,
    )
    decoder = causal_decoder(model)
    lengths = checked_lengths(encoded)
    results = [[ArHypothesis((), 0.0, 0.0, 0.0)] for _ in lengths]
    for group in group_by_memory(lengths, model.config.vocab_size):
        part = select_encoded(encoded, group)
        found = _search_group(model, decoder, part, settings)
        for index, hypotheses in zip(group, found, strict=True):
            results[index] = hypotheses
    return results


def _search_group(
    model: RecognitionModel, decoder: CausalDecoder, encoded: Encoded, settings: JointSettings
) -> list[list[ArHypothesis]]:
    log_probs = model.ctc_log_probs(encoded.hidden)
    frames: list[int] = encoded.lengths.tolist()
    search = JointSearch(
        decoder,
        None if settings.ctc_weight == 0.0 else tabulate_ctc(log_probs, encoded.lengths),
        settings,
        tuple(FinishedHypotheses(settings.nbest) for _ in frames),
        tuple(settings.longest(count) for count in frames),
        tuple(settings.shortest(count) for count in frames),
    )
    beam = _start(search, encoded, sos=model.config.vocab_size - 1)
    while beam.utterances:
        beam = advance(search, beam)
    found = [finished.hypotheses for finished in search.finished]
    if search.table is None:
        return _add_ctc(found, log_probs, encoded.lengths)
    return [_drop_impossible(hypotheses) for hypotheses in found]


def _start(search: JointSearch, encoded: Encoded, sos: int) -> Beam:
    """The empty hypothesis of every utterance."""
    batch, device = len(encoded.lengths), encoded.hidden.device
    memory = search.decoder.project_memory(encoded.hidden, encoded.lengths)
    zero = torch.zeros(batch, 1, dtype=torch.float64, device=device)
    return Beam(
        tuple(range(batch)),
        memory,
        search.decoder.start(memory, hypotheses=1),
        torch.full((batch, 1, 1), sos, device=device),
        zero,
        zero,
        None if search.table is None else initial_prefixes(search.table),
    )


def _drop_impossible(hypotheses: list[ArHypothesis]) -> list[ArHypothesis]:
    """Without what the CTC cannot spell in the frames there are, if anything else was found."""
    possible = [hypothesis for hypothesis in hypotheses if hypothesis.ctc > LOG_ZERO / 2]
    return possible or hypotheses[:1]


def _add_ctc(
    found: Sequence[Sequence[ArHypothesis]],
    log_probs: Float[Tensor, "B T V"],
    lengths: Int[Tensor, "B"],
) -> list[list[ArHypothesis]]:
    """Fill in the CTC log-probability of hypotheses that were found without it."""
    rows = [row for row, hypotheses in enumerate(found) for _ in hypotheses]
    tokens = [hypothesis.tokens for hypotheses in found for hypothesis in hypotheses]
    scores = iter(ctc_sequence_scores(log_probs, lengths, rows, tokens))
    return [
        [replace(hypothesis, ctc=next(scores)) for hypothesis in hypotheses] for hypotheses in found
    ]
