from __future__ import annotations

import math
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from kdpipe.search import ctc_prefix
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

from .enumeration import Tokens, prefix_log_prob, sequence_log_probs

VOCABULARY = 4


def random_log_probs(seed: int, *shape: int, sharpness: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(*shape, generator=generator)).log_softmax(-1)


def lengths_of(*lengths: int) -> Tensor:
    return torch.tensor(lengths, dtype=torch.int64)


def spell(table: CtcTable, prefix: Tokens, utterance: int = 0) -> CtcPrefixState:
    """The state of one prefix, built token by token."""
    state = select_prefixes(initial_prefixes(table), torch.tensor([utterance]))
    for token in prefix:
        state = extend_prefixes(table, state, torch.tensor([0]), torch.tensor([token]))
    return state


def every_next(table: CtcTable, state: CtcPrefixState) -> Float[Tensor, "V-1"]:
    vocabulary = table.by_token.shape[1]
    return prefix_scores(table, state, torch.arange(1, vocabulary)[None])[0]


@st.composite
def cases(draw: st.DrawFn) -> tuple[NDArray[np.float64], Tokens]:
    frames = draw(st.integers(1, 5))
    seed = draw(st.integers(0, 2**31))
    sharpness = draw(st.sampled_from([0.5, 2.0, 8.0]))
    log_probs = random_log_probs(seed, frames, VOCABULARY, sharpness=sharpness)
    prefix = draw(st.lists(st.integers(1, VOCABULARY - 1), max_size=frames))
    return log_probs.double().numpy(), tuple(prefix)


@given(cases())
@settings(max_examples=120, deadline=None)
def test_equals_the_enumeration_of_alignments(case: tuple[NDArray[np.float64], Tokens]) -> None:
    log_probs, prefix = case
    sequences = sequence_log_probs(log_probs)
    table = tabulate_ctc(torch.tensor(log_probs)[None].float(), lengths_of(len(log_probs)))
    state = spell(table, prefix)
    assert_log_equal(float(state.total[0]), sequences.get(prefix, -math.inf))
    scores = every_next(table, state)
    for token in range(1, VOCABULARY):
        expected = prefix_log_prob(sequences, (*prefix, token))
        assert_log_equal(float(scores[token - 1]), expected)


def assert_log_equal(ours: float, expected: float) -> None:
    if expected == -math.inf:
        assert ours < LOG_ZERO / 2
    else:
        assert ours == pytest.approx(expected, abs=1e-3)


def test_equals_the_peer(shared: Path) -> None:
    golden = np.load(shared / "golden" / "ctc-prefix.npz")
    log_probs = torch.tensor(golden["ctc_logp"])[None]
    table = tabulate_ctc(log_probs, lengths_of(log_probs.shape[1]))
    for prefix, length, expected in zip(
        golden["prefix"], golden["prefix_length"], golden["next_score"], strict=True
    ):
        state = spell(table, tuple(int(token) for token in prefix[:length]))
        ours = every_next(table, state)
        ours[-1] = state.total[0]
        np.testing.assert_allclose(ours, expected, atol=1e-3)


def test_padding_and_company_change_nothing() -> None:
    log_probs = random_log_probs(1, 3, 9, 6)
    lengths = lengths_of(9, 4, 6)
    table = tabulate_ctc(log_probs, lengths)
    for utterance in range(3):
        alone = tabulate_ctc(
            log_probs[utterance : utterance + 1, : lengths[utterance]],
            lengths_of(int(lengths[utterance])),
        )
        for prefix in [(), (2,), (3, 3), (1, 4, 1)]:
            ours, theirs = spell(table, prefix, utterance), spell(alone, prefix)
            torch.testing.assert_close(ours.total, theirs.total)
            torch.testing.assert_close(
                every_next(table, ours).clamp(min=LOG_ZERO / 2),
                every_next(alone, theirs).clamp(min=LOG_ZERO / 2),
            )


def test_blocks_of_candidates_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    table = tabulate_ctc(random_log_probs(2, 2, 7, 11), lengths_of(7, 5))
    state = extend_prefixes(
        table, initial_prefixes(table), torch.tensor([0, 1, 1]), torch.tensor([4, 4, 7])
    )
    candidates = torch.arange(1, 11).expand(3, -1)
    whole = prefix_scores(table, state, candidates)
    monkeypatch.setattr(ctc_prefix, "_CHUNK_ELEMENTS", 50)
    torch.testing.assert_close(prefix_scores(table, state, candidates), whole)


def test_certain_posteriors_stay_finite() -> None:
    certain = torch.full((1, 6, 5), -math.inf)
    for frame, token in enumerate([0, 2, 2, 0, 3, 0]):
        certain[0, frame, token] = 0.0
    table = tabulate_ctc(certain, lengths_of(6))
    assert float(spell(table, (2, 3)).total[0]) == pytest.approx(0.0, abs=1e-6)
    assert float(spell(table, (2, 2)).total[0]) < LOG_ZERO / 2
    assert bool(torch.isfinite(every_next(table, spell(table, (2, 2, 4)))).all())


def test_long_utterances_keep_their_precision() -> None:
    """Five minutes: totals of thousands of nats, differences still to 1e-3."""
    frames, tokens = 7500, 600
    log_probs = random_log_probs(3, 1, frames, 8, sharpness=1.0)
    table = tabulate_ctc(log_probs, lengths_of(frames))
    target = torch.randint(1, 8, (tokens,), generator=torch.Generator().manual_seed(4))
    state = spell(table, tuple(target.tolist()))
    expected = -torch.nn.functional.ctc_loss(
        log_probs[0].double(), target, lengths_of(frames), lengths_of(tokens), reduction="none"
    )
    assert float(state.total[0]) == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.parametrize("frames", [0, 1])
def test_almost_no_frames(frames: int) -> None:
    table = tabulate_ctc(random_log_probs(5, 1, frames, 4), lengths_of(frames))
    state = spell(table, ())
    assert float(state.total[0]) == pytest.approx(float(table.blank.sum()))
    assert float(spell(table, (1, 2)).total[0]) < LOG_ZERO / 2
