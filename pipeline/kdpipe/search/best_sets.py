"""The best ways to fill k of a hypothesis's masks: exact k-best sets (Algorithm 1, line 5).

Given the other tokens, masked positions are independent, so a candidate is a set of k
positions with one token each, and its score the sum of their log-posteriors. Two exact
reductions keep the problem small, whatever the number of masks and the vocabulary:

- a position outside the B + k - 1 best ones (by its best token) is in none of the B best
  sets: at least B of the better positions are unused, and each of them gives a better set;
- a token outside the B best of its position is in none either, for the same reason.

What remains is solved position by position, keeping the B best partial sets of each size.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kdpipe.search.topk import best_columns, top_tokens

__all__ = ["Fillings", "Shortlists", "best_fillings", "shortlist"]


class Shortlists(NamedTuple):
    """The P best masked positions of N hypotheses and their B best tokens, best first.

    Ties: the lower position, the lower token. `log_probs` is -inf where a hypothesis has
    fewer masks or the vocabulary fewer tokens.
    """

    positions: Int[Tensor, "N P"]
    tokens: Int[Tensor, "N P B"]
    log_probs: Float[Tensor, "N P B"]


class Fillings(NamedTuple):
    """The B best sets of each of N hypotheses, best first.

    A set is a token for each of the hypothesis's shortlisted positions, -1 for none.
    `scores` (nats) is -inf where there are fewer sets.
    """

    scores: Float[Tensor, "N B"]
    tokens: Int[Tensor, "N B P"]


def shortlist(
    log_probs: Float[Tensor, "M C"], masked: Bool[Tensor, "N L"], filled: int, beam: int
) -> Shortlists:
    """What can matter for the `beam` best sets of at most `filled` positions.

    Row m of `log_probs` belongs to the m-th true element of `masked`; classes that may not
    be emitted are -inf.
    """
    best = log_probs.new_full(masked.shape, -math.inf)
    best[masked] = log_probs.amax(1)
    count = min(masked.shape[1], beam + filled - 1)
    positions = best_columns(best, count)
    rows = (masked.flatten().cumsum(0) - 1).view_as(masked).clamp(min=0)
    chosen = log_probs[rows.gather(1, positions).flatten()]
    values, tokens = top_tokens(chosen, min(beam, log_probs.shape[1]))
    order = best_columns(values, values.shape[1])
    shape = (*positions.shape, -1)
    values = values.gather(1, order).view(shape).double()
    missing = best.gather(1, positions) == -math.inf
    values = values.masked_fill(missing[:, :, None], -math.inf)
    return Shortlists(positions, tokens.gather(1, order).view(shape), values)


def best_fillings(shortlists: Shortlists, filled: int, beam: int) -> Fillings:
    """The `beam` best sets of exactly `filled` positions, for every hypothesis.

    Ties: the set without the worse-ranked position first.
    """
    hypotheses, positions, width = shortlists.log_probs.shape
    by_taken = filled <= positions - filled
    sizes = min(filled, positions - filled) + 1
    choices = _choices(beam, width, by_taken, shortlists.log_probs.device)
    gains = shortlists.log_probs.index_select(2, choices.ranks[beam:])
    scores = gains.new_full((hypotheses, sizes, beam), -math.inf)
    scores[:, 0, 0] = 0.0
    steps = []
    for position in range(positions):
        scores, choice = _decide(scores, gains[:, position], choices, by_taken)
        steps.append(choice.flatten(1))
    ranks = _trace(steps, choices, beam, (sizes - 1) * beam)
    tokens = shortlists.tokens.gather(2, ranks.clamp(min=0).transpose(1, 2)).transpose(1, 2)
    return Fillings(scores[:, -1], tokens.masked_fill(ranks < 0, -1))


class _Choices(NamedTuple):
    """What one position may add to the sets of K places: choice c, X of them.

    The first K leave the position masked and keep the set at place c. The others take a
    token: all pairs of a place i and a rank j (from 0) with (i + 1)(j + 1) <= K, since
    (i + 1)(j + 1) - 1 pairs at least as good come before.
    """

    places: Int[Tensor, "X"]
    """Place of the set that the choice extends."""
    ranks: Int[Tensor, "X"]
    """Rank of the token taken, -1 for none."""
    jumps: Int[Tensor, "X"]
    """From the start of the new size's places to the place that the choice came from."""


@lru_cache(maxsize=32)
def _choices(beam: int, width: int, by_taken: bool, device: torch.device) -> _Choices:
    left = [(place, -1) for place in range(beam)]
    pairs = [(i, j) for i in range(beam) for j in range(width) if (i + 1) * (j + 1) <= beam]
    with torch.inference_mode(False):
        places, ranks = torch.tensor(left + pairs, device=device).unbind(1)
        grows = (ranks >= 0) if by_taken else (ranks < 0)
        return _Choices(places, ranks, places - beam * grows.long())


def _decide(
    scores: Float[Tensor, "N S K"], gains: Float[Tensor, "N Y"], choices: _Choices, by_taken: bool
) -> tuple[Float[Tensor, "N S K"], Int[Tensor, "N S K"]]:
    """Leave the next position masked or give it a token: the K best sets of each size.

    Sizes count the positions taken or, when that needs fewer of them, those left.
    """
    beam = scores.shape[2]
    taken = scores.index_select(2, choices.places[beam:]) + gains[:, None]
    none = taken.new_full((len(taken), 1, 1), -math.inf)
    if by_taken:
        taken = torch.cat((none.expand(-1, -1, taken.shape[2]), taken[:, :-1]), dim=1)
        left = scores
    else:
        left = torch.cat((none.expand(-1, -1, beam), scores[:, :-1]), dim=1)
    pool = torch.cat((left, taken), dim=2)
    choice = best_columns(pool.flatten(0, 1), beam).view_as(scores)
    return pool.gather(2, choice), choice


def _trace(steps: list[Tensor], choices: _Choices, beam: int, start: int) -> Int[Tensor, "N K P"]:
    """Rank of the token that each final set gives each position, -1 where it is left masked.

    `steps[p]` are the choices (N, S * K) made for position p; the final sets are at `start`.
    """
    hypotheses = len(steps[0])
    cell = torch.arange(start, start + beam, device=steps[0].device).expand(hypotheses, -1)
    made = []
    for step in reversed(steps):
        choice = step.gather(1, cell)
        made.append(choice)
        # Sets of score -inf may point anywhere; they do not exist.
        cell = (cell - cell % beam + choices.jumps[choice]).clamp(min=0)
    return choices.ranks[torch.stack(made[::-1], dim=2)]
