from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from kdpipe.errors import ConfigError, DataError, MismatchError, UtteranceTooLongError
from kdpipe.models import Encoded
from kdpipe.search import slots
from kdpipe.search.ctc_prefix import LOG_ZERO
from kdpipe.search.finished import FinishedHypotheses
from kdpipe.search.joint_beam import ArHypothesis, joint_beam_search

from .models import alone, load_peer, random_encoded, tiny_model
from .reference import reference_search, sequence_score

PEER_SETTINGS: dict[str, dict[str, Any]] = {
    "nbest": {"beam": 10, "ctc_weight": 0.3},
    "nbest_beam4_ctc05": {"beam": 4, "ctc_weight": 0.5},
    "nbest_att": {"beam": 10, "ctc_weight": 0.0},
}


IMPOSSIBLE = 0.3 * LOG_ZERO / 2
"""Below it, a hypothesis is one of many that the CTC cannot spell, in no order."""


def assert_same(ours: list[ArHypothesis], theirs: list[ArHypothesis], atol: float = 1e-4) -> None:
    assert [item.tokens for item in ours] == [item.tokens for item in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.score == pytest.approx(b.score, abs=atol)
        assert a.attention == pytest.approx(b.attention, abs=atol)


@pytest.mark.parametrize("name", sorted(PEER_SETTINGS))
@pytest.mark.parametrize(
    "folder", ["espnet-ar-conformer", "espnet-ar-legacy", "espnet-ar-transformer"]
)
def test_equals_the_peer(shared: Path, folder: str, name: str) -> None:
    model, encoded, expected = load_peer(shared / "golden" / folder)
    found = joint_beam_search(model, encoded, **PEER_SETTINGS[name])
    for ours, utterance in zip(found, expected, strict=True):
        theirs = utterance[name]
        assert [list(item.tokens) for item in ours] == [item["tokens"] for item in theirs]
        for a, b in zip(ours, theirs, strict=True):
            assert a.score == pytest.approx(b["score"], abs=1e-3)
            assert a.attention == pytest.approx(b["decoder"], abs=1e-3)
            if name != "nbest_att":
                assert a.ctc == pytest.approx(b["ctc"], abs=1e-3)


@st.composite
def search_settings(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "beam": draw(st.integers(1, 6)),
        "ctc_weight": draw(st.sampled_from([0.0, 0.3, 0.5, 1.0])),
        "nbest": draw(st.sampled_from([1, 3, 10])),
        "length_bonus": draw(st.sampled_from([-0.5, 0.0, 0.7])),
        "max_length_ratio": draw(st.sampled_from([0.0, 0.4, 1.0])),
        "min_length_ratio": draw(st.sampled_from([0.0, 0.3, 1.0])),
        "pre_beam_ratio": draw(st.sampled_from([1.0, 1.5, 20.0])),
    }


@given(search_settings(), st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(0, 999))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_equals_the_reference(options: dict[str, Any], lengths: list[int], seed: int) -> None:
    model, encoded = tiny_model(seed=seed % 5), random_encoded(*lengths, seed=seed)
    found = joint_beam_search(model, encoded, **options)
    expected = reference_search(model, encoded, **options)
    for ours, theirs in zip(found, expected, strict=True):
        if theirs[0].score > IMPOSSIBLE:
            assert_same(ours, theirs)
        else:
            assert ours[0].score < IMPOSSIBLE


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3, 1.0])
def test_a_beam_of_everything_is_exhaustive(ctc_weight: float) -> None:
    model, encoded = tiny_model(vocab_size=4, seed=3), random_encoded(6)
    longest, bonus = 3, 0.25
    options: dict[str, Any] = {
        "beam": 200,
        "nbest": 200,
        "pre_beam_ratio": 1.0,
        "length_bonus": bonus,
    }
    found = joint_beam_search(
        model, encoded, ctc_weight=ctc_weight, max_length_ratio=longest / 6 + 0.01, **options
    )[0]
    tokens = (1, 2) if ctc_weight else (0, 1, 2)
    expected = {}
    for size in range(longest):
        for sequence in itertools.product(tokens, repeat=size):
            attention, ctc = sequence_score(model, encoded.hidden[0], sequence)
            # 0 * -inf: without a CTC weight, a sequence that CTC cannot spell is fine.
            joint = (1 - ctc_weight) * attention + (ctc_weight * ctc if ctc_weight else 0.0)
            expected[sequence] = joint + bonus * (size + 1)
    ours = {item.tokens: item.score for item in found if len(item.tokens) < longest}
    assert len(found) == len({item.tokens for item in found})
    assert ours.keys() == expected.keys()
    for sequence, score in expected.items():
        assert ours[sequence] == pytest.approx(score, abs=1e-4)


def test_a_batch_equals_each_utterance_alone() -> None:
    model, encoded = tiny_model(seed=7), random_encoded(30, 0, 11, 1, 19, 25)
    together = joint_beam_search(model, encoded, beam=4, nbest=6)
    for row, ours in enumerate(together):
        assert_same(ours, joint_beam_search(model, alone(encoded, row), beam=4, nbest=6)[0])


def test_groups_and_compaction_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, encoded = tiny_model(seed=8), random_encoded(40, 12, 33)
    whole = joint_beam_search(model, encoded, beam=5)
    monkeypatch.setattr("kdpipe.search.settings._GROUP_ELEMENTS", 40 * 12)
    monkeypatch.setattr(slots, "_FEW_SLOTS", 0)
    for ours, theirs in zip(joint_beam_search(model, encoded, beam=5), whole, strict=True):
        assert_same(ours, theirs)


def test_scores_are_those_of_the_whole_sequences() -> None:
    model, encoded = tiny_model(seed=2), random_encoded(14)
    for weight in (0.0, 0.3):
        for item in joint_beam_search(model, encoded, beam=3, ctc_weight=weight)[0]:
            if len(item.tokens) < 14 and 0 not in item.tokens:
                attention, ctc = sequence_score(model, encoded.hidden[0], item.tokens)
                assert item.attention == pytest.approx(attention, abs=1e-4)
                assert item.ctc == pytest.approx(ctc, abs=1e-4)


def test_fewer_best_are_the_first_of_more() -> None:
    """The search stops early for a short n-best, and must not miss anything."""
    for seed in range(8):
        model, encoded = tiny_model(seed=seed), random_encoded(20, 9, seed=seed)
        many = joint_beam_search(model, encoded, beam=6, nbest=60)
        few = joint_beam_search(model, encoded, beam=6, nbest=2)
        for a, b in zip(few, many, strict=True):
            assert_same(a, b[:2])


def test_ties_go_to_the_better_parent_then_the_lower_token() -> None:
    model, encoded = tiny_model(), random_encoded(8)
    with torch.no_grad():
        model.decoder.output_layer.weight.zero_()
        model.decoder.output_layer.bias.zero_()
    found = joint_beam_search(
        model, encoded, beam=4, ctc_weight=0.0, max_length_ratio=0.25, min_length_ratio=0.25
    )[0]
    assert [item.tokens for item in found] == [(0, 0), (0, 1), (0, 2), (0, 3)]


def test_no_frames_give_the_empty_hypothesis() -> None:
    model = tiny_model()
    empty = [ArHypothesis((), 0.0, 0.0, 0.0)]
    assert joint_beam_search(model, random_encoded(0, 0)) == [empty, empty]
    features = torch.zeros(1, 1, 80)
    with torch.no_grad():
        one_frame = model.encode(features, torch.tensor([1]))
    assert joint_beam_search(model, one_frame) == [empty]
    assert joint_beam_search(model, random_encoded()) == []


def test_all_blank_gives_the_empty_hypothesis() -> None:
    model, encoded = tiny_model(), random_encoded(12)
    with torch.no_grad():
        model.ctc.ctc_lo.weight.zero_()
        model.ctc.ctc_lo.bias.fill_(-30.0)
        model.ctc.ctc_lo.bias[0] = 30.0
    assert joint_beam_search(model, encoded)[0][0].tokens == ()


def test_long_utterances_are_refused_by_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdpipe.search.settings.MAX_FRAMES", 10)
    with pytest.raises(UtteranceTooLongError) as caught:
        joint_beam_search(tiny_model(), random_encoded(4, 11))
    assert (caught.value.frames, caught.value.limit) == (11, 10)


@pytest.mark.parametrize(
    "options",
    [
        {"beam": 0},
        {"nbest": 0},
        {"ctc_weight": 1.5},
        {"ctc_weight": math.nan},
        {"length_bonus": math.inf},
        {"max_length_ratio": -1.0},
        {"min_length_ratio": 2.0},
        {"pre_beam_ratio": 0.5},
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        joint_beam_search(tiny_model(), random_encoded(4), **options)


def test_a_student_is_refused() -> None:
    with pytest.raises(MismatchError):
        joint_beam_search(tiny_model("mask-ctc"), random_encoded(4))


def test_frames_that_are_not_finite_are_refused() -> None:
    encoded = random_encoded(4)
    encoded.hidden[0, 2, 3] = math.nan
    with pytest.raises(DataError):
        joint_beam_search(tiny_model(), Encoded(*encoded))


def test_the_nbest_keeps_the_first_of_equals() -> None:
    finished = FinishedHypotheses(2)
    for tokens, score in [((1,), -3.0), ((2,), -1.0), ((3,), -3.0), ((4,), -1.0), ((5,), -9.0)]:
        finished.add(ArHypothesis(tokens, score, 0.0, 0.0))
    assert [item.tokens for item in finished.hypotheses] == [(2,), (4,)]
    assert finished.bound == -1.0


def test_blank_stays_out_while_the_ctc_takes_part() -> None:
    for seed in range(4):
        model = tiny_model(seed=seed)
        with torch.no_grad():
            model.decoder.output_layer.bias[0] = 20.0
        for item in joint_beam_search(model, random_encoded(9, seed=seed), beam=3)[0]:
            assert 0 not in item.tokens


def test_the_end_is_detected_when_three_lengths_in_a_row_are_hopeless() -> None:
    finished = FinishedHypotheses(1)
    assert not finished.end_detected(9)
    for size, score in [(3, -1.0), (4, -12.0), (5, -12.5), (6, -10.9)]:
        finished.add(ArHypothesis((2,) * size, score, 0.0, 0.0))
    assert not finished.end_detected(8)
    finished.add(ArHypothesis((2,) * 7, -30.0, 0.0, 0.0))
    assert not finished.end_detected(9)
    finished.add(ArHypothesis((2,) * 8, -31.0, 0.0, 0.0))
    finished.add(ArHypothesis((2,) * 9, -31.0, 0.0, 0.0))
    assert not finished.end_detected(10)
    assert finished.end_detected(11)
