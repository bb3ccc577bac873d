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

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kdpipe.models import CausalDecoder, Encoded, Memory, RecognitionModel, SelfAttentionCache
from kdpipe.models import reorder as reorder_cache
from kdpipe.search.ctc_prefix import (
    LOG_ZERO,
    CtcPrefixState,
    CtcTable,
    extend_prefixes,
    initial_prefixes,
    prefix_scores,
    select_prefixes,
    tabulate_ctc,
)
from kdpipe.search.ctc_score import ctc_sequence_scores
from kdpipe.search.finished import ArHypothesis, FinishedHypotheses
from kdpipe.search.inputs import causal_decoder, checked_lengths, select_encoded
from kdpipe.search.rows import select_cache, select_memory
from kdpipe.search.settings import JointSettings, group_by_memory
from kdpipe.search.slots import drop_dead_slots
from kdpipe.search.topk import best_columns, top_tokens

__all__ = ["ArHypothesis", "joint_beam_search"]

_BLANK = 0


@dataclass(frozen=True, slots=True)
class _Beam:
    """K running hypotheses for each of R utterances; unused places score -inf."""

    utterances: tuple[int, ...]
    memory: Memory
    cache: SelfAttentionCache
    prefixes: Int[Tensor, "R K L"]
    joint: Float[Tensor, "R K"]
    attention: Float[Tensor, "R K"]
    ctc: CtcPrefixState | None

    @property
    def step(self) -> int:
        """Tokens of every running hypothesis, sos not counted."""
        return self.prefixes.shape[2] - 1


@dataclass(frozen=True, slots=True)
class _Extended:
    """The best K one-token extensions of a beam's R utterances, best first."""

    parents: Int[Tensor, "R K"]
    tokens: Int[Tensor, "R K"]
    joint: Float[Tensor, "R K"]
    attention: Float[Tensor, "R K"]
    ctc: Float[Tensor, "R K"]


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
    table = None if settings.ctc_weight == 0.0 else tabulate_ctc(log_probs, encoded.lengths)
    finished = [FinishedHypotheses(settings.nbest) for _ in range(len(encoded.lengths))]
    frames: list[int] = encoded.lengths.tolist()
    beam = _start(model, decoder, encoded, table)
    while beam.utterances:
        beam = _advance(beam, decoder, table, settings, finished, frames)
    found = [completed.hypotheses for completed in finished]
    if table is None:
        return _add_ctc(found, log_probs, encoded.lengths)
    return [_drop_impossible(hypotheses) for hypotheses in found]


def _drop_impossible(hypotheses: list[ArHypothesis]) -> list[ArHypothesis]:
    """Without what the CTC cannot spell in the frames there are, if anything else was found."""
    possible = [hypothesis for hypothesis in hypotheses if hypothesis.ctc > LOG_ZERO / 2]
    return possible or hypotheses[:1]


def _start(
    model: RecognitionModel, decoder: CausalDecoder, encoded: Encoded, table: CtcTable | None
) -> _Beam:
    batch, device = len(encoded.lengths), encoded.hidden.device
    memory = decoder.project_memory(encoded.hidden, encoded.lengths)
    sos = model.config.vocab_size - 1
    zero = torch.zeros(batch, 1, dtype=torch.float64, device=device)
    return _Beam(
        tuple(range(batch)),
        memory,
        decoder.start(memory, hypotheses=1),
        torch.full((batch, 1, 1), sos, device=device),
        zero,
        zero,
        None if table is None else initial_prefixes(table),
    )


def _advance(
    beam: _Beam,
    decoder: CausalDecoder,
    table: CtcTable | None,
    settings: JointSettings,
    finished: Sequence[FinishedHypotheses],
    frames: Sequence[int],
) -> _Beam:
    """One step for every running hypothesis; what completes goes to `finished`."""
    log_probs, cache = decoder.step(beam.prefixes[:, :, -1], beam.cache, beam.memory)
    extended = _extend(beam, log_probs, table, settings, frames)
    eos = log_probs.shape[2] - 1
    running = _collect(beam, extended, eos, finished)
    beam = replace(beam, cache=cache)
    done = _find_done(beam, extended, running, settings, finished, frames)
    return _continue(beam, extended, running, done, table)


def _extend(
    beam: _Beam,
    log_probs: Float[Tensor, "R K V"],
    table: CtcTable | None,
    settings: JointSettings,
    frames: Sequence[int],
) -> _Extended:
    """Score the candidates of every hypothesis and keep the best of each utterance."""
    rows, vocabulary = log_probs.shape[0], log_probs.shape[2]
    scores = log_probs.flatten(0, 1)
    end = _allow_end(beam, scores[:, -1:], settings, frames)
    scores = torch.cat((scores[:, :-1], end), dim=1)
    if table is not None:
        scores[:, _BLANK] = -math.inf
    attention, tokens = top_tokens(scores, settings.candidates(vocabulary))
    # The end of sentence has its own column, whether or not it is among the candidates.
    attention = attention.masked_fill(tokens == vocabulary - 1, -math.inf)
    attention = torch.cat((attention, end), dim=1).double()
    tokens = torch.cat((tokens, tokens.new_full((len(tokens), 1), vocabulary - 1)), dim=1)
    attention += beam.attention.flatten()[:, None]
    ctc = _score_ctc(beam, table, tokens)
    bonus = settings.length_bonus * (beam.step + 1)
    joint = (1.0 - settings.ctc_weight) * attention + settings.ctc_weight * ctc + bonus
    joint = joint.masked_fill(
        torch.isinf(attention) | torch.isinf(beam.joint.view(-1, 1)), -math.inf
    )
    best = best_columns(joint.view(rows, -1), settings.beam)
    return _Extended(
        best // tokens.shape[1],
        *(x.reshape(rows, -1).gather(1, best) for x in (tokens, joint, attention, ctc)),
    )


def _allow_end(
    beam: _Beam, end: Float[Tensor, "N 1"], settings: JointSettings, frames: Sequence[int]
) -> Float[Tensor, "N 1"]:
    """Attention score of the end of sentence; -inf below an utterance's minimum length."""
    early = [beam.step < settings.shortest(frames[u]) for u in beam.utterances]
    if not any(early):
        return end
    mask = torch.tensor(early, device=end.device).repeat_interleave(beam.joint.shape[1])
    return end.masked_fill(mask[:, None], -math.inf)


def _score_ctc(
    beam: _Beam, table: CtcTable | None, tokens: Int[Tensor, "N C"]
) -> Float[Tensor, "N C"]:
    """CTC log-probability of each extension; the last column is the end of sentence."""
    if table is None or beam.ctc is None:
        return torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)
    labels = prefix_scores(table, beam.ctc, tokens[:, :-1]).double()
    return torch.cat((labels, beam.ctc.total[:, None]), dim=1)


def _collect(
    beam: _Beam, extended: _Extended, eos: int, finished: Sequence[FinishedHypotheses]
) -> Bool[Tensor, "R K"]:
    """Hand the extensions that end to `finished`; true where one goes on."""
    exists = extended.joint > -math.inf
    ends = (extended.tokens == eos) & exists
    _finish(beam, extended, ends, finished, cut_off=False)
    return exists & ~ends


def _finish(
    beam: _Beam,
    extended: _Extended,
    chosen: Bool[Tensor, "R K"],
    finished: Sequence[FinishedHypotheses],
    cut_off: bool,
) -> None:
    """Complete the chosen extensions; one that is cut off ends in an ordinary token."""
    rows, places = chosen.nonzero(as_tuple=True)
    if not len(rows):
        return
    parents = extended.parents[rows, places]
    prefixes = beam.prefixes[rows, parents, 1:].tolist()
    fields = (extended.tokens, extended.joint, extended.attention, extended.ctc)
    values = [field[rows, places].tolist() for field in fields]
    for row, prefix, token, joint, attention, ctc in zip(
        rows.tolist(), prefixes, *values, strict=True
    ):
        tokens = (*prefix, token) if cut_off else tuple(prefix)
        finished[beam.utterances[row]].add(ArHypothesis(tokens, joint, attention, ctc))


def _find_done(
    beam: _Beam,
    extended: _Extended,
    running: Bool[Tensor, "R K"],
    settings: JointSettings,
    finished: Sequence[FinishedHypotheses],
    frames: Sequence[int],
) -> list[bool]:
    """Which utterances need no further step; cuts off what is at its maximum length."""
    last = [beam.step + 1 >= settings.longest(frames[u]) for u in beam.utterances]
    if any(last):
        mask = torch.tensor(last, device=running.device)[:, None]
        _finish(beam, extended, running & mask, finished, cut_off=True)
    best = extended.joint.masked_fill(~running, -math.inf).amax(1).tolist()
    return [
        at_end
        or finished[u].end_detected(beam.step)
        or score + _most_bonus(settings, frames[u], beam.step) <= finished[u].bound
        or score == -math.inf
        for u, at_end, score in zip(beam.utterances, last, best, strict=True)
    ]


def _most_bonus(settings: JointSettings, frames: int, step: int) -> float:
    """The most that a running hypothesis can still gain: its log-probabilities only fall."""
    return max(0.0, settings.length_bonus) * (settings.longest(frames) - step)


def _continue(
    beam: _Beam,
    extended: _Extended,
    running: Bool[Tensor, "R K"],
    done: list[bool],
    table: CtcTable | None,
) -> _Beam:
    """The running extensions as the next beam, without the utterances that are done."""
    kept = [row for row, finished in enumerate(done) if not finished]
    if not kept:
        return replace(beam, utterances=())
    if len(kept) < len(done):
        rows = torch.tensor(kept, device=running.device)
        beam = _select_rows(beam, kept, rows)
        extended = _Extended(*(getattr(extended, name)[rows] for name in _Extended.__slots__))
        running = running[rows]
    return _reorder(beam, _pack(extended, running), table)


def _select_rows(beam: _Beam, kept: Sequence[int], rows: Int[Tensor, "r"]) -> _Beam:
    hypotheses = beam.joint.shape[1]
    places = torch.arange(hypotheses, device=rows.device)
    flat = (rows[:, None] * hypotheses + places).flatten()
    return _Beam(
        tuple(beam.utterances[row] for row in kept),
        select_memory(beam.memory, kept),
        select_cache(beam.cache, kept),
        beam.prefixes[rows],
        beam.joint[rows],
        beam.attention[rows],
        None if beam.ctc is None else select_prefixes(beam.ctc, flat),
    )


def _pack(extended: _Extended, running: Bool[Tensor, "R K"]) -> _Extended:
    """Move running extensions to the front, in order, and drop the places that none uses."""
    width = int(running.sum(1).max())
    order = best_columns(running.double(), width)
    packed = _Extended(*(getattr(extended, name).gather(1, order) for name in _Extended.__slots__))
    unused = ~running.gather(1, order)
    return replace(packed, joint=packed.joint.masked_fill(unused, -math.inf))


def _reorder(beam: _Beam, extended: _Extended, table: CtcTable | None) -> _Beam:
    hypotheses = beam.joint.shape[1]
    history = extended.parents[:, :, None].expand(-1, -1, beam.prefixes.shape[2])
    prefixes = torch.cat((beam.prefixes.gather(1, history), extended.tokens[:, :, None]), dim=2)
    ctc = None
    if table is not None and beam.ctc is not None:
        rows = torch.arange(len(beam.utterances), device=prefixes.device)
        parents = (extended.parents + rows[:, None] * hypotheses).flatten()
        ctc = extend_prefixes(table, beam.ctc, parents, extended.tokens.flatten())
    cache = drop_dead_slots(reorder_cache(beam.cache, extended.parents))
    return _Beam(
        beam.utterances, beam.memory, cache, prefixes, extended.joint, extended.attention, ctc
    )


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
