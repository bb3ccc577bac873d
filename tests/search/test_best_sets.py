from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from kdpipe.search.best_sets import best_fillings, shortlist

from .mask_reference import every_filling

MASK = 5


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[list[bool]], int, int, int]:
    length = draw(st.integers(1, 5))
    rows = draw(st.lists(st.lists(st.booleans(), min_size=length, max_size=length), max_size=3))
    rows.append([True] * length)
    return rows, draw(st.integers(1, length)), draw(st.integers(1, 7)), draw(st.integers(0, 999))


@given(problems())
@settings(max_examples=150, deadline=None)
def test_equals_enumeration(problem: tuple[list[list[bool]], int, int, int]) -> None:
    rows, size, beam, seed = problem
    masked = torch.tensor(rows)
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(int(masked.sum()), MASK, generator=generator).log_softmax(-1)
    log_probs[:, 0] = -torch.inf
    lists = shortlist(log_probs, masked, size, beam)
    found = best_fillings(lists, size, beam)
    spread = torch.full((*masked.shape, MASK), -torch.inf)
    spread[masked] = log_probs
    for row in range(len(rows)):
        tokens = tuple(MASK if wanted else 1 for wanted in rows[row])
        every = sorted(every_filling(spread[row].double(), tokens, MASK, size), reverse=True)
        expected = every[:beam]
        scores = found.scores[row].tolist()
        assert scores[: len(expected)] == pytest.approx([score for score, _ in expected], abs=1e-5)
        assert all(score == -torch.inf for score in scores[len(expected) :])
        by_tokens = {filled: score for score, filled in every}
        seen = set()
        for score, choice in zip(scores, found.tokens[row].tolist(), strict=True):
            if score > -torch.inf:
                filled = list(tokens)
                for position, token in zip(lists.positions[row].tolist(), choice, strict=True):
                    if token >= 0:
                        filled[position] = token
                assert by_tokens[tuple(filled)] == pytest.approx(score, abs=1e-5)
                seen.add(tuple(filled))
        assert len(seen) == len(expected)


def test_many_masks_and_large_sets_stay_small() -> None:
    """The lists grow with the beam and the set size, not with the masks or the vocabulary."""
    generator = torch.Generator().manual_seed(1)
    log_probs = torch.randn(400, 300, generator=generator).log_softmax(-1)
    masked = torch.ones(1, 400, dtype=torch.bool)
    few = shortlist(log_probs, masked, 2, 10)
    assert few.log_probs.shape == (1, 11, 10)
    many = shortlist(log_probs, masked, 390, 10)
    found = best_fillings(many, 390, 10)
    best = log_probs.amax(1).sort(descending=True).values[:390].double().sum()
    assert float(found.scores[0, 0]) == pytest.approx(float(best), abs=1e-4)
    assert bool((found.scores.diff(dim=1) <= 1e-9).all())
    assert bool(((found.tokens >= 0).sum(2) == 390).all())


def test_ties_go_to_the_lower_position_and_token() -> None:
    uniform = torch.full((3, 4), 0.25).log()
    masked = torch.tensor([[False, True, True, True]])
    lists = shortlist(uniform, masked, 1, 3)
    assert lists.positions.tolist() == [[1, 2, 3]]
    assert lists.tokens[0, 0].tolist() == [0, 1, 2]
    assert best_fillings(lists, 1, 3).tokens[0, 0].tolist() == [0, -1, -1]
