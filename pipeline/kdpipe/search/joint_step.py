"""One step of the joint beam search: extend, keep the best, complete, go on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kdpipe.models import CausalDecoder, Memory, SelfAttentionCache
from kdpipe.models import reorder as reorder_cache
from kdpipe.search.ctc_prefix import (
    CtcPrefixState,
    CtcTable,
    extend_prefixes,
    prefix_scores,
    select_prefixes,
)
from kdpipe.search.finished import ArHypothesis, FinishedHypotheses
from kdpipe.search.rows import select_cache, select_memory
from kdpipe.search.settings import JointSettings
from kdpipe.search.slots import drop_dead_slots
from kdpipe.search.topk import best_columns, top_tokens

__all__ = ["Beam", "JointSearch", "advance"]

_BLANK = 0


@dataclass(frozen=True, slots=True)
class JointSearch:
    """What stays the same over the steps; the tuples have an entry for each utterance.

    `table` is None when the CTC takes no part; `longest` and `shortest` are in tokens.
    """

    decoder: CausalDecoder
    table: CtcTable | None
    settings: JointSettings
    finished: tuple[FinishedHypotheses, ...]
    longest: tuple[int, ...]
    shortest: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Beam:
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


def advance(search: JointSearch, beam: Beam) -> Beam:
    """One step for every running hypothesis; what completes goes to `search.finished`.

    The beam that is returned has no utterances when every search has ended.
    """
    log_probs, cache = search.decoder.step(beam.prefixes[:, :, -1], beam.cache, beam.memory)
    extended = _extend(search, beam, log_probs)
    running = _complete(search, beam, extended, eos=log_probs.shape[2] - 1)
    done = _find_done(search, beam, extended, running)
    return _go_on(search, replace(beam, cache=cache), extended, running, done)


def _extend(search: JointSearch, beam: Beam, log_probs: Float[Tensor, "R K V"]) -> _Extended:
    """Score the candidates of every hypothesis and keep the best of each utterance."""
    rows, settings = len(beam.utterances), search.settings
    attention, tokens = _attention_candidates(search, beam, log_probs.flatten(0, 1))
    exists = torch.isfinite(attention) & torch.isfinite(beam.joint.view(-1, 1))
    attention = attention.double() + beam.attention.view(-1, 1)
    ctc = _score_ctc(search.table, beam.ctc, tokens)
    bonus = settings.length_bonus * (beam.step + 1)
    joint = (1.0 - settings.ctc_weight) * attention + settings.ctc_weight * ctc + bonus
    joint = joint.masked_fill(~exists, -math.inf)
    best = best_columns(joint.view(rows, -1), settings.beam)
    return _Extended(
        best // tokens.shape[1],
        *(x.reshape(rows, -1).gather(1, best) for x in (tokens, joint, attention, ctc)),
    )


def _attention_candidates(
    search: JointSearch, beam: Beam, log_probs: Float[Tensor, "N V"]
) -> tuple[Float[Tensor, "N C"], Int[Tensor, "N C"]]:
    """The pre-beam: best tokens under the decoder, ascending, then the end of sentence."""
    vocabulary = log_probs.shape[1]
    end = _allow_end(search, beam, log_probs[:, -1:])
    scores = torch.cat((log_probs[:, :-1], end), dim=1)
    if search.table is not None:
        scores[:, _BLANK] = -math.inf
    attention, tokens = top_tokens(scores, search.settings.candidates(vocabulary))
    # The end of sentence has its own column, whether or not it is among the best.
    attention = attention.masked_fill(tokens == vocabulary - 1, -math.inf)
    last = tokens.new_full((len(tokens), 1), vocabulary - 1)
    return torch.cat((attention, end), dim=1), torch.cat((tokens, last), dim=1)


def _allow_end(search: JointSearch, beam: Beam, end: Float[Tensor, "N 1"]) -> Float[Tensor, "N 1"]:
    """Attention score of the end of sentence; -inf below an utterance's minimum length."""
    early = [beam.step < search.shortest[utterance] for utterance in beam.utterances]
    if not any(early):
        return end
    mask = torch.tensor(early, device=end.device).repeat_interleave(beam.joint.shape[1])
    return end.masked_fill(mask[:, None], -math.inf)


def _score_ctc(
    table: CtcTable | None, state: CtcPrefixState | None, tokens: Int[Tensor, "N C"]
) -> Float[Tensor, "N C"]:
    """CTC log-probability of each extension; the last column is the end of sentence."""
    if table is None or state is None:
        return torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)
    labels = prefix_scores(table, state, tokens[:, :-1]).double()
    return torch.cat((labels, state.total[:, None]), dim=1)


def _complete(
    search: JointSearch, beam: Beam, extended: _Extended, eos: int
) -> Bool[Tensor, "R K"]:
    """Complete what ends here; true where an extension goes on."""
    exists = extended.joint > -math.inf
    ends = (extended.tokens == eos) & exists
    for row, prefix, _, scores in _read(beam, extended, ends):
        search.finished[beam.utterances[row]].add(ArHypothesis(tuple(prefix), *scores))
    goes_on = exists & ~ends
    last = [beam.step + 1 >= search.longest[utterance] for utterance in beam.utterances]
    if any(last):
        cut_off = goes_on & torch.tensor(last, device=goes_on.device)[:, None]
        for row, prefix, token, scores in _read(beam, extended, cut_off):
            finished = search.finished[beam.utterances[row]]
            finished.add(ArHypothesis((*prefix, token), *scores))
        goes_on &= ~cut_off
    return goes_on


def _read(
    beam: Beam, extended: _Extended, chosen: Bool[Tensor, "R K"]
) -> Iterator[tuple[int, list[int], int, tuple[float, float, float]]]:
    """Row, prefix, new token and (joint, attention, CTC) scores of the chosen, best first."""
    rows, places = chosen.nonzero(as_tuple=True)
    if not len(rows):
        return
    prefixes = beam.prefixes[rows, extended.parents[rows, places], 1:]
    scores = (extended.joint, extended.attention, extended.ctc)
    yield from zip(
        rows.tolist(),
        prefixes.tolist(),
        extended.tokens[rows, places].tolist(),
        zip(*(field[rows, places].tolist() for field in scores), strict=True),
        strict=True,
    )


def _find_done(
    search: JointSearch, beam: Beam, extended: _Extended, running: Bool[Tensor, "R K"]
) -> list[bool]:
    """Which utterances need no further step."""
    best = extended.joint.masked_fill(~running, -math.inf).amax(1).tolist()
    done = []
    for utterance, score in zip(beam.utterances, best, strict=True):
        finished = search.finished[utterance]
        # What a running hypothesis can still gain: its log-probabilities only fall.
        gain = max(0.0, search.settings.length_bonus) * (search.longest[utterance] - beam.step)
        hopeless = score == -math.inf or score + gain <= finished.bound
        done.append(hopeless or finished.end_detected(beam.step))
    return done


def _go_on(
    search: JointSearch,
    beam: Beam,
    extended: _Extended,
    running: Bool[Tensor, "R K"],
    done: Sequence[bool],
) -> Beam:
    """The running extensions as the next beam, without the utterances that are done."""
    kept = [row for row, finished in enumerate(done) if not finished]
    if not kept:
        return replace(beam, utterances=())
    if len(kept) < len(done):
        rows = torch.tensor(kept, device=running.device)
        beam = _select_rows(beam, kept, rows)
        extended = _Extended(*(getattr(extended, name)[rows] for name in _Extended.__slots__))
        running = running[rows]
    return _reorder(beam, _pack(extended, running), search.table)


def _select_rows(beam: Beam, kept: Sequence[int], rows: Int[Tensor, "r"]) -> Beam:
    hypotheses = beam.joint.shape[1]
    places = torch.arange(hypotheses, device=rows.device)
    flat = (rows[:, None] * hypotheses + places).flatten()
    return Beam(
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


def _reorder(beam: Beam, extended: _Extended, table: CtcTable | None) -> Beam:
    hypotheses = beam.joint.shape[1]
    history = extended.parents[:, :, None].expand(-1, -1, beam.prefixes.shape[2])
    prefixes = torch.cat((beam.prefixes.gather(1, history), extended.tokens[:, :, None]), dim=2)
    ctc = None
    if table is not None and beam.ctc is not None:
        rows = torch.arange(len(beam.utterances), device=prefixes.device)
        parents = (extended.parents + rows[:, None] * hypotheses).flatten()
        ctc = extend_prefixes(table, beam.ctc, parents, extended.tokens.flatten())
    cache = drop_dead_slots(reorder_cache(beam.cache, extended.parents))
    return Beam(
        beam.utterances, beam.memory, cache, prefixes, extended.joint, extended.attention, ctc
    )
