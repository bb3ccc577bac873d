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
    hypotheses, positions, _ = shortlists.log_probs.shape
    by_taken = filled <= positions - filled
    sizes = min(filled, positions - filled) + 1
    scores = shortlists.log_probs.new_full((hypotheses, sizes, beam), -math.inf)
    scores[:, 0, 0] = 0.0
    steps: list[Tensor] = []
    for position in range(positions):
        scores, choice = _decide(scores, shortlists.log_probs[:, position], by_taken)
        steps.append(choice)
    return Fillings(scores[:, -1], _trace(steps, shortlists.tokens, by_taken, sizes))


def _decide(
    scores: Float[Tensor, "N S K"], tokens: Float[Tensor, "N B"], by_taken: bool
) -> tuple[Float[Tensor, "N S K"], Int[Tensor, "N S K"]]:
    """Leave the next position masked or give it a token: the K best sets of each size.

    Sizes count the positions taken or, when that needs fewer of them, those left. A choice
    below K is the set that it comes from with the position left; beyond, a useful pair.
    """
    left = scores
    places, ranks = _useful_pairs(scores.shape[2], tokens.shape[1], scores.device)
    taken = scores[:, :, places] + tokens[:, None, ranks]
    if by_taken:
        taken = _one_larger(taken)
    else:
        left = _one_larger(left)
    pool = torch.cat((left, taken), dim=2)
    choice = best_columns(pool.flatten(0, 1), scores.shape[2]).view_as(scores)
    return pool.gather(2, choice), choice


@lru_cache(maxsize=32)
def _useful_pairs(
    beam: int, width: int, device: torch.device
) -> tuple[Int[Tensor, "X"], Int[Tensor, "X"]]:
    """(place of a set, rank of a token) that can give one of the `beam` best sums.

    Place i and rank j (from 0) have (i + 1)(j + 1) - 1 pairs at least as good before them.
    """
    pairs = [(i, j) for i in range(beam) for j in range(width) if (i + 1) * (j + 1) <= beam]
    with torch.inference_mode(False):
        places, ranks = torch.tensor(pairs, device=device).unbind(1)
    return places, ranks


def _one_larger(scores: Float[Tensor, "N S X"]) -> Float[Tensor, "N S X"]:
    """Scores of sets of one size as those of the next."""
    none = scores.new_full((scores.shape[0], 1, scores.shape[2]), -math.inf)
    return torch.cat((none, scores[:, :-1]), dim=1)


def _trace(
    steps: list[Tensor], tokens: Int[Tensor, "N P B"], by_taken: bool, sizes: int
) -> Int[Tensor, "N K P"]:
    """The token of each position in the final sets, -1 where it is left masked."""
    beam = steps[0].shape[2]
    places, ranks = _useful_pairs(beam, tokens.shape[2], tokens.device)
    rows = torch.arange(len(tokens), device=tokens.device)[:, None]
    size = torch.full((len(tokens), beam), sizes - 1, device=tokens.device)
    place = torch.arange(beam, device=tokens.device).expand_as(size)
    chosen = []
    for position in range(len(steps) - 1, -1, -1):
        choice = steps[position][rows, size, place]
        taken = choice >= beam
        pair = (choice - beam).clamp(min=0)
        token = tokens[rows, position, ranks[pair]]
        chosen.append(torch.where(taken, token, -1))
        place = torch.where(taken, places[pair], choice)
        # -inf sets may point anywhere; their scores say that they do not exist.
        size = (size - (taken if by_taken else ~taken).long()).clamp(min=0)
    return torch.stack(chosen[::-1], dim=2)
