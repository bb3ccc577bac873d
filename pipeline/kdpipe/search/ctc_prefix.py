"""CTC prefix probabilities for label-synchronous search, batched, in log space.

For a prefix g and a next token c, psi(g c) is the log of the total probability of all label
sequences that start with g c (Watanabe et al. 2017, "Hybrid CTC/Attention Architecture for
End-to-End Speech Recognition", Algorithm 2; Graves 2008). With phi_t(g, c) the log
probability that frames 0..t spell g in a way that a further c starts a new label,

    psi(g c) = logsumexp_t( phi_{t-1}(g, c) + x_t(c) ),

so scoring a candidate needs no recursion over time, only a sum: the recursion is run for the
prefixes that survive alone. It is linear in the probabilities,

    r_t = logaddexp(r_{t-1}, phi_{t-1}) + x_t
    r_t = X_t + logcumsumexp_{s<=t}( phi_{s-1} - X_{s-1} ),

X being the running sum of x: two scans instead of a loop over frames. The scans are float64,
because X reaches thousands of nats and is subtracted again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = [
    "LOG_ZERO",
    "CtcPrefixState",
    "CtcTable",
    "extend_prefixes",
    "initial_prefixes",
    "prefix_scores",
    "select_prefixes",
    "tabulate_ctc",
]

LOG_ZERO = -1.0e5
"""Stands for log 0: finite, so that differences never become NaN, and far below any score."""

_CHUNK_ELEMENTS = 1 << 24
"""Frames x candidates scored at once: bounds the working memory at 64 MiB."""


class CtcTable(NamedTuple):
    """Frame log-probabilities laid out for search; padding frames spell only blanks, for free."""

    by_token: Float[Tensor, "B V T"]
    """log P_t(c), a token's frames contiguous; LOG_ZERO in the padding."""
    blank: Float[Tensor, "B T"]
    """float64 running sum of the blank's log-probability, constant in the padding."""


class CtcPrefixState(NamedTuple):
    """Forward variables of N prefixes, shifted by one frame: index t holds frame t-1."""

    utterance: Int[Tensor, "N"]
    """Row of the table that each prefix belongs to."""
    phi: Float[Tensor, "N T"]
    """float64 log-probability that frames before t spell the prefix exactly."""
    phi_blank: Float[Tensor, "N T"]
    """The same, ending in a blank: what a repeated last token may follow."""
    last: Int[Tensor, "N"]
    """Last token of the prefix; -1 for the empty prefix."""
    total: Float[Tensor, "N"]
    """float64 log-probability of the prefix as the whole label sequence."""


def tabulate_ctc(
    log_probs: Float[Tensor, "B T V"], lengths: Int[Tensor, "B"], blank: int = 0
) -> CtcTable:
    """Lay out CTC log-posteriors (nats) of a padded batch for `prefix_scores`."""
    by_token = log_probs.float().transpose(1, 2).contiguous().clamp_(min=LOG_ZERO)
    for row, length in enumerate(lengths.tolist()):
        by_token[row, :, length:] = LOG_ZERO
    frames = torch.arange(log_probs.shape[1], device=log_probs.device)
    padding = frames[None, :] >= lengths[:, None]
    blanks = by_token[:, blank].double().masked_fill(padding, 0.0)
    return CtcTable(by_token, blanks.cumsum(1))


def initial_prefixes(table: CtcTable) -> CtcPrefixState:
    """The empty prefix of every utterance: only blanks so far."""
    batch = table.blank.shape[0]
    total = table.blank[:, -1] if table.blank.shape[1] else table.blank.new_zeros(batch)
    phi = _shift(table.blank, table.blank.new_zeros(batch))
    last = torch.full((batch,), -1, device=phi.device)
    return CtcPrefixState(torch.arange(batch, device=phi.device), phi, phi, last, total)


def prefix_scores(
    table: CtcTable, state: CtcPrefixState, candidates: Int[Tensor, "N C"]
) -> Float[Tensor, "N C"]:
    """psi of every prefix extended by each of its candidates, in nats (blank is no candidate).

    Works through blocks of candidates, so that memory stays bounded for any vocabulary.
    """
    frames = max(1, state.phi.shape[1])
    width = max(1, _CHUNK_ELEMENTS // (frames * max(1, candidates.shape[0])))
    blocks = [_score_block(table, state, block) for block in torch.split(candidates, width, dim=1)]
    scores = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)
    return _score_repeats(table, state, candidates, scores)


def extend_prefixes(
    table: CtcTable,
    state: CtcPrefixState,
    parents: Int[Tensor, "N2"],
    tokens: Int[Tensor, "N2"],
) -> CtcPrefixState:
    """Forward variables of `parents` (rows of `state`) extended by one token each."""
    parent = select_prefixes(state, parents)
    repeats = (tokens == parent.last)[:, None]
    phi = torch.where(repeats, parent.phi_blank, parent.phi)
    emitted = table.by_token[parent.utterance, tokens].double().cumsum(1)
    label = _scan(emitted, phi)
    blank_sum = table.blank[parent.utterance]
    never = label.new_full((label.shape[0],), LOG_ZERO)
    blank = _scan(blank_sum, _shift(label, never))
    either = torch.logaddexp(label, blank)
    total = either[:, -1] if either.shape[1] else never
    return CtcPrefixState(
        parent.utterance, _shift(either, never), _shift(blank, never), tokens, total
    )


def select_prefixes(state: CtcPrefixState, rows: Int[Tensor, "N2"]) -> CtcPrefixState:
    """The given rows of a state, in the given order."""
    return CtcPrefixState(*(field[rows] for field in state))


def _score_block(
    table: CtcTable, state: CtcPrefixState, tokens: Int[Tensor, "N C"]
) -> Float[Tensor, "N C"]:
    """psi as if no candidate repeated the last token."""
    rows = state.utterance[:, None] * table.by_token.shape[1] + tokens
    emitted = table.by_token.flatten(0, 1).index_select(0, rows.flatten())
    emitted = emitted.view(*tokens.shape, -1)
    # phi relative to its maximum keeps float32 exact enough for utterances of any length.
    offset = state.phi.amax(1, keepdim=True)
    emitted += (state.phi - offset).float()[:, None, :]
    return torch.logsumexp(emitted, dim=2) + offset.float()


def _score_repeats(
    table: CtcTable,
    state: CtcPrefixState,
    candidates: Int[Tensor, "N C"],
    scores: Float[Tensor, "N C"],
) -> Float[Tensor, "N C"]:
    """Replace the score of a candidate equal to the last token: a blank must come between."""
    repeated = candidates == state.last[:, None]
    last = state.last.clamp(min=0)[:, None]
    apart = _score_block(table, state._replace(phi=state.phi_blank), last)
    return torch.where(repeated, apart, scores)


def _scan(cumulative: Float[Tensor, "N T"], arriving: Float[Tensor, "N T"]) -> Float[Tensor, "N T"]:
    """r_t = logaddexp(r_{t-1}, arriving_t) + x_t, for x given as its running sum."""
    before = _shift(cumulative, cumulative.new_zeros(cumulative.shape[0]))
    return cumulative + torch.logcumsumexp(arriving - before, dim=1)


def _shift(values: Float[Tensor, "N T"], first: Float[Tensor, "N"]) -> Float[Tensor, "N T"]:
    """Values one frame later, `first` at frame 0."""
    return torch.cat((first[:, None], values[:, :-1]), dim=1)[:, : values.shape[1]]
