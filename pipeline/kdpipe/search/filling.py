"""Filling masks: easy first, and the beam search of Algorithm 1 with an exact bound.

Every hypothesis is extended by its B best sets of k masked positions with their tokens, and
the B best of all are kept, by accumulated log-posterior; of two equal partial fillings the
better-scored survives. Ties: the better-ranked parent first, then the order of
`best_fillings`.

Log-posteriors are at most 0, so a hypothesis that scores no more than a completed one cannot
end above it. Easy-first filling runs first and gives that bound (for an n-best: the n-th
best way to complete its last iteration); little else survives when the decoder is sure. The
result is the n best of the unpruned search's beam and those completions together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from kdpipe.models import Encoded, MaskedDecoder, Memory
from kdpipe.search.best_sets import Shortlists, best_fillings, shortlist
from kdpipe.search.inputs import select_encoded
from kdpipe.search.rows import select_memory
from kdpipe.search.settings import MaskCtcSettings

__all__ = ["Partial", "fill_masks"]

_CALL_ELEMENTS = 1 << 26
"""Masks x classes that one decoder call may put out: 256 MiB."""

_BLANK, _UNK = 0, 1

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Partial:
    """A hypothesis with masks in it or, at the end, none; `score` in nats."""

    tokens: Tokens
    score: float


@dataclass(frozen=True, slots=True)
class _Filler:
    """The decoder, what it reads of each utterance, and how to search."""

    decoder: MaskedDecoder
    memory: Memory
    mask: int
    settings: MaskCtcSettings


@dataclass(frozen=True, slots=True)
class _TrailStep:
    """Easy-first hypotheses before an iteration, and what the decoder says of their masks."""

    partials: tuple[Partial, ...]
    shortlists: Shortlists


def fill_masks(
    decoder: MaskedDecoder,
    encoded: Encoded,
    masked: Sequence[Tokens],
    mask: int,
    settings: MaskCtcSettings,
) -> list[list[Partial]]:
    """Completions of each utterance's tokens, best first: all of the final beam.

    Utterances without masks do not reach the decoder.
    """
    completed = [[Partial(tokens, 0.0)] for tokens in masked]
    # Most masks first: what is still being filled is then always the front of the batch.
    rows = [row for row, tokens in enumerate(masked) if mask in tokens]
    rows.sort(key=lambda row: -masked[row].count(mask))
    if rows:
        part = select_encoded(encoded, rows)
        memory = decoder.project_memory(part.hidden, part.lengths)
        filler = _Filler(decoder, memory, mask, settings)
        found = _fill([masked[row] for row in rows], filler)
        for row, partials in zip(rows, found, strict=True):
            completed[row] = partials
    return completed


def _fill(masked: Sequence[Tokens], filler: _Filler) -> list[list[Partial]]:
    trail, easiest = _fill_easy_first(masked, filler)
    if filler.settings.beam == 1:
        return [[partial] for partial in easiest]
    return _fill_by_beam(masked, filler, trail, easiest)


def _sizes(masked: Sequence[Tokens], filler: _Filler, iteration: int) -> list[int]:
    """Masks that an iteration fills in each utterance still open: K, at last what is left."""
    size = filler.settings.tokens_per_iteration
    left = [tokens.count(filler.mask) - iteration * size for tokens in masked]
    return [min(size, masks) for masks in left if masks > 0]


def _fill_easy_first(
    masked: Sequence[Tokens], filler: _Filler
) -> tuple[list[_TrailStep], list[Partial]]:
    """Fill the most probable masks at a time: every step on the way, and the end."""
    partials = [Partial(tokens, 0.0) for tokens in masked]
    trail: list[_TrailStep] = []
    while sizes := _sizes(masked, filler, len(trail)):
        front = partials[: len(sizes)]
        width = max(len(item.tokens) for item in front)
        shortlists = _consult(filler, range(len(front)), [[item] for item in front], width)
        trail.append(_TrailStep(tuple(front), shortlists))
        positions = shortlists.positions.tolist()
        tokens, values = shortlists.tokens[:, :, 0].tolist(), shortlists.log_probs[:, :, 0].tolist()
        for row, size in enumerate(sizes):
            choice = zip(positions[row][:size], tokens[row], values[row], strict=False)
            partials[row] = _place(front[row], choice)
    return trail, partials


def _place(partial: Partial, choice: Iterable[tuple[int, int, float]]) -> Partial:
    """Fill (position, token, log-posterior)s in."""
    tokens, score = list(partial.tokens), partial.score
    for position, token, value in choice:
        tokens[position] = token
        score += value
    return Partial(tuple(tokens), score)


def _consult(
    filler: _Filler, rows: Sequence[int], partials: Sequence[Sequence[Partial]], width: int
) -> Shortlists:
    """One decoder call: what may be filled into hypotheses of the given utterances.

    `partials[i]` are hypotheses of row `rows[i]`; the shortlists follow their order. They are
    as wide as `width` tokens allow: those of one iteration must be alike.
    """
    tokens, lengths = _pad(partials, filler.mask, width)
    device = filler.memory.keys[0].device
    tokens, lengths = tokens.to(device), lengths.to(device)
    memory = select_memory(filler.memory, rows)
    real = torch.tensor([len(items) for items in partials], device=device)[:, None]
    real = torch.arange(tokens.shape[1], device=device) < real
    masked = (tokens == filler.mask) & real[:, :, None]
    masked &= torch.arange(tokens.shape[2], device=device) < lengths[:, None, None]
    settings = filler.settings
    parts = []
    for piece in _pieces(masked, filler.decoder.output_layer.out_features):
        wanted = masked[:, piece]
        log_probs = filler.decoder.forward_with_memory(tokens[:, piece], lengths, memory, wanted)
        log_probs[:, [_BLANK, _UNK, filler.mask - 1, filler.mask]] = -math.inf
        parts.append(
            shortlist(log_probs, wanted.flatten(0, 1), settings.tokens_per_iteration, settings.beam)
        )
    return _join(parts, real)


def _pad(
    partials: Sequence[Sequence[Partial]], fill: int, width: int
) -> tuple[Int[Tensor, "U R L"], Int[Tensor, "U"]]:
    """Tokens and lengths; the hypotheses of an utterance are equally long."""
    lengths = [len(items[0].tokens) for items in partials]
    depth = max(len(items) for items in partials)
    padded = [
        [[*item.tokens, *[fill] * (width - len(item.tokens))] for item in items]
        + [[fill] * width] * (depth - len(items))
        for items in partials
    ]
    return torch.tensor(padded), torch.tensor(lengths)


def _pieces(masked: Bool[Tensor, "U R L"], classes: int) -> list[slice]:
    """Runs of hypotheses whose decoder output fits the memory together."""
    most = int(masked.sum((0, 2)).max()) * classes
    step = max(1, _CALL_ELEMENTS // max(1, most))
    return [slice(start, start + step) for start in range(0, masked.shape[1], step)]


def _join(parts: Sequence[Shortlists], real: Bool[Tensor, "U R"]) -> Shortlists:
    """Shortlists of pieces, each (U * r), as one list in the order of the hypotheses."""
    batch = real.shape[0]
    fields = []
    for index in range(3):
        pieces = [part[index].view(batch, -1, *part[index].shape[1:]) for part in parts]
        joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
        fields.append(joined[real])
    return Shortlists(*fields)


def _fill_by_beam(
    masked: Sequence[Tokens],
    filler: _Filler,
    trail: Sequence[_TrailStep],
    easiest: Sequence[Partial],
) -> list[list[Partial]]:
    pools = _first_completions(masked, filler, trail, easiest)
    beams = [[Partial(tokens, 0.0)] for tokens in masked]
    wanted, width = filler.settings.completions, filler.settings.beam
    for iteration, step in enumerate(trail):
        sizes = _sizes(masked, filler, iteration)
        unfinished = len(_sizes(masked, filler, iteration + 1))
        rows = [row for row in range(len(sizes)) if beams[row]]
        extended = _extend(filler, step, {row: beams[row] for row in rows}, sizes)
        for row, candidates in extended.items():
            beams[row] = _best_distinct(candidates, width, _bound(pools[row], wanted))
            if row >= unfinished:
                pools[row] = _best_distinct([*pools[row], *beams[row]], width, -math.inf)
    return [pool[:wanted] for pool in pools]


def _first_completions(
    masked: Sequence[Tokens],
    filler: _Filler,
    trail: Sequence[_TrailStep],
    easiest: Sequence[Partial],
) -> list[list[Partial]]:
    """Completed hypotheses that bound the beam search: as many as it must return, if possible.

    The easy-first one; for more, the best ways to fill what its last iteration left open.
    """
    pools = [[partial] for partial in easiest]
    if filler.settings.completions == 1:
        return pools
    for iteration, step in enumerate(trail):
        sizes = _sizes(masked, filler, iteration)
        last = range(len(_sizes(masked, filler, iteration + 1)), len(sizes))
        extended = _extend(filler, step, {row: [step.partials[row]] for row in last}, sizes)
        for row, candidates in extended.items():
            together = [*pools[row], *candidates]
            pools[row] = _best_distinct(together, filler.settings.beam, -math.inf)
    return pools


def _bound(pool: Sequence[Partial], wanted: int) -> float:
    """What a hypothesis must exceed to be among the wanted best."""
    return pool[wanted - 1].score if len(pool) >= wanted else -math.inf


def _extend(
    filler: _Filler, step: _TrailStep, beams: Mapping[int, list[Partial]], sizes: Sequence[int]
) -> dict[int, list[Partial]]:
    """Every hypothesis filled by each of its best sets; candidates by row, by parent."""
    shortlists = _shortlists(filler, step, beams)
    owners = [(row, partial) for row, partials in beams.items() for partial in partials]
    candidates: dict[int, list[Partial]] = {row: [] for row in beams}
    for size in sorted({sizes[row] for row in beams}):
        chosen = [index for index, (row, _) in enumerate(owners) if sizes[row] == size]
        part = Shortlists(*(field[chosen] for field in shortlists))
        fillings = best_fillings(part, size, filler.settings.beam)
        rows = zip(
            chosen,
            part.positions.tolist(),
            fillings.scores.tolist(),
            fillings.tokens.tolist(),
            strict=True,
        )
        for index, positions, scores, choices in rows:
            row, partial = owners[index]
            candidates[row] += _fill_sets(partial, positions, scores, choices)
    return candidates


def _shortlists(
    filler: _Filler, step: _TrailStep, beams: Mapping[int, list[Partial]]
) -> Shortlists:
    """Shortlists of the hypotheses in order; the decoder has seen the easy-first ones."""
    known = [partial.tokens for partial in step.partials]
    fresh = {
        row: [partial for partial in partials if partial.tokens != known[row]]
        for row, partials in beams.items()
    }
    fresh = {row: partials for row, partials in fresh.items() if partials}
    everything, order, following = step.shortlists, [], len(known)
    if fresh:
        found = _consult(filler, list(fresh), list(fresh.values()), max(map(len, known)))
        everything = Shortlists(*(torch.cat(pair) for pair in zip(everything, found, strict=True)))
    for row, partials in beams.items():
        for partial in partials:
            seen = partial.tokens == known[row]
            order.append(row if seen else following)
            following += not seen
    return Shortlists(*(field[order] for field in everything))


def _fill_sets(
    partial: Partial,
    positions: Sequence[int],
    scores: Sequence[float],
    choices: Sequence[Sequence[int]],
) -> list[Partial]:
    filled = []
    for score, choice in zip(scores, choices, strict=True):
        if score > -math.inf:
            tokens = list(partial.tokens)
            for position, token in zip(positions, choice, strict=True):
                if token >= 0:
                    tokens[position] = token
            filled.append(Partial(tuple(tokens), partial.score + score))
    return filled


def _best_distinct(candidates: Iterable[Partial], count: int, bound: float) -> list[Partial]:
    """The best above the bound, best first; of equal tokens only the better-scored."""
    kept: dict[Tokens, Partial] = {}
    for partial in sorted(candidates, key=lambda item: -item.score):
        if partial.score <= bound or len(kept) == count:
            break
        kept.setdefault(partial.tokens, partial)
    return list(kept.values())
