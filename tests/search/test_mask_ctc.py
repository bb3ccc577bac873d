from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from kdpipe.errors import ConfigError, MismatchError
from kdpipe.models import Encoded, MaskedDecoder, RecognitionModel
from kdpipe.search import filling
from kdpipe.search.ctc_greedy import ctc_greedy
from kdpipe.search.ctc_prefix import LOG_ZERO
from kdpipe.search.mask_ctc import NarHypothesis, mask_ctc_search

from .mask_reference import Tokens, algorithm_1, easy_first
from .models import alone, load_peer, random_encoded, tiny_model


def student(seed: int = 0, vocab_size: int = 7, sharpness: float = 3.0) -> RecognitionModel:
    return tiny_model("mask-ctc", vocab_size, seed, sharpness)


def masked_greedy(model: RecognitionModel, hidden: torch.Tensor, threshold: float) -> Tokens:
    with torch.inference_mode():
        log_probs = model.ctc_log_probs(hidden[None])
    greedy = ctc_greedy(log_probs, torch.tensor([len(hidden)]))[0]
    mask = model.config.vocab_size
    pairs = zip(greedy.tokens, greedy.confidences, strict=True)
    return tuple(mask if confidence < threshold else token for token, confidence in pairs)


def assert_same(ours: list[NarHypothesis], theirs: list[NarHypothesis]) -> None:
    assert [item.tokens for item in ours] == [item.tokens for item in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.score == pytest.approx(b.score, abs=1e-4)


CASES = {
    "seed": st.integers(0, 500),
    "frames": st.integers(1, 9),
    "size": st.integers(1, 4),
    "threshold": st.sampled_from([0.0, 0.5, 0.8, 1.1]),
}


@given(**CASES)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_beam_1_is_easy_first(seed: int, frames: int, size: int, threshold: float) -> None:
    model, encoded = student(seed % 7), random_encoded(frames, seed=seed)
    tokens = masked_greedy(model, encoded.hidden[0], threshold)
    expected, score = easy_first(model, encoded.hidden[0], tokens, size)
    found = mask_ctc_search(model, encoded, tokens_per_iteration=size, mask_threshold=threshold)[0][
        0
    ]
    assert found.tokens == expected
    assert found.score == found.decoder == pytest.approx(score, abs=1e-4)


@given(**CASES, beam=st.integers(2, 5), nbest=st.integers(1, 4))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_beam_is_algorithm_1_with_what_bounded_it(
    seed: int, frames: int, size: int, threshold: float, beam: int, nbest: int
) -> None:
    """No better hypothesis of the unpruned search is lost; only better ones may come in."""
    model, encoded = student(seed % 7), random_encoded(min(frames, 6), seed=seed)
    hidden = encoded.hidden[0]
    tokens = masked_greedy(model, hidden, threshold)
    unpruned = dict(algorithm_1(model, hidden, tokens, beam, size))
    found = mask_ctc_search(
        model,
        encoded,
        beam=beam,
        tokens_per_iteration=size,
        mask_threshold=threshold,
        nbest=nbest,
    )[0]
    scores = [item.score for item in found]
    assert scores == sorted(scores, reverse=True)
    assert len(found) == min(nbest, beam, len(unpruned))
    best = sorted(unpruned.values(), reverse=True)
    assert all(ours >= theirs - 1e-4 for ours, theirs in zip(scores, best, strict=False))
    by_tokens = {item.tokens: item.score for item in found}
    for sequence, score in unpruned.items():
        if score > scores[-1] + 1e-4:
            assert by_tokens[sequence] >= score - 1e-4
    easiest, easy_score = easy_first(model, hidden, tokens, size)
    if nbest == 1:
        assert scores[0] == pytest.approx(max(easy_score, best[0]), abs=1e-4)
        assert found[0].tokens in {easiest, *unpruned}


def test_a_batch_equals_each_utterance_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, encoded = student(3), random_encoded(25, 0, 11, 1, 40, 18)
    options: dict[str, Any] = {"beam": 4, "nbest": 3, "mask_threshold": 0.9}
    together = mask_ctc_search(model, encoded, **options)
    for row, ours in enumerate(together):
        assert_same(ours, mask_ctc_search(model, alone(encoded, row), **options)[0])
    monkeypatch.setattr(filling, "_CALL_ELEMENTS", 20)
    monkeypatch.setattr("kdpipe.search.settings._GROUP_ELEMENTS", 300)
    for ours, theirs in zip(mask_ctc_search(model, encoded, **options), together, strict=True):
        assert_same(ours, theirs)


def test_a_long_utterance_that_is_sure_beside_a_short_one_that_is_not() -> None:
    """Only the short one's hypotheses are then new, and it has fewer masks than are shortlisted."""
    model = tiny_model("mask-ctc", 7, 25, 40.0)
    generator, lengths = torch.Generator().manual_seed(25), [40, 8]
    hidden = torch.zeros(2, 40, 16)
    for row, (length, scale) in enumerate(zip(lengths, (4.0, 1.0), strict=True)):
        hidden[row, :length] = scale * torch.randn(length, 16, generator=generator)
    encoded = Encoded(hidden, torch.tensor(lengths))
    options: dict[str, Any] = {"beam": 10, "nbest": 3, "mask_threshold": 0.9999}
    for row, ours in enumerate(mask_ctc_search(model, encoded, **options)):
        assert_same(ours, mask_ctc_search(model, alone(encoded, row), **options)[0])


def test_one_pass_equals_the_peer(shared: Path) -> None:
    """Its longer searches rank positions by logit; what one pass fills needs no ranking."""
    model, encoded, expected = load_peer(shared / "golden" / "espnet-maskctc")
    found = mask_ctc_search(model, encoded, tokens_per_iteration=1000)
    for ours, utterance in zip(found, expected, strict=True):
        assert list(ours[0].tokens) == utterance["maskctc_n1"]


def count_rows(model: RecognitionModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Utterances and hypotheses of each decoder call from now on."""
    calls: list[tuple[int, int]] = []
    decoder = model.decoder
    assert isinstance(decoder, MaskedDecoder)
    original = decoder.forward_with_memory

    def counted(tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
        calls.append((tokens.shape[0], tokens.shape[1]))
        return original(tokens, *rest)

    monkeypatch.setattr(decoder, "forward_with_memory", counted)
    return calls


def test_one_call_an_iteration_and_none_without_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, encoded = student(1), random_encoded(30, 22)
    calls = count_rows(model, monkeypatch)
    mask_ctc_search(model, encoded, beam=5, mask_threshold=0.0)
    assert calls == []
    masks = [masked_greedy(model, alone(encoded, row).hidden[0], 1.1).count(7) for row in range(2)]
    mask_ctc_search(model, encoded, mask_threshold=1.1, tokens_per_iteration=2)
    iterations = [math.ceil(count / 2) for count in masks]
    assert len(calls) == max(iterations)
    assert sum(shape[0] for shape in calls) == sum(iterations)


def test_hypotheses_below_the_bound_never_reach_the_decoder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A decoder sure of its tokens: only the order of filling is left to try."""
    model, encoded = student(2), random_encoded(20)
    with torch.no_grad():
        model.decoder.output_layer.bias[2] += 20.0
    calls = count_rows(model, monkeypatch)
    mask_ctc_search(model, encoded, beam=10, mask_threshold=1.1, tokens_per_iteration=1)
    pruned = sum(rows for _, rows in calls)
    calls.clear()
    monkeypatch.setattr(filling, "_bound", lambda pool, wanted: -math.inf)
    mask_ctc_search(model, encoded, beam=10, mask_threshold=1.1, tokens_per_iteration=1)
    assert pruned < sum(rows for _, rows in calls)


def test_what_may_not_be_emitted_is_not() -> None:
    for seed in range(5):
        model, encoded = student(seed), random_encoded(15, seed=seed)
        with torch.no_grad():
            model.decoder.output_layer.bias[[0, 1, 6, 7]] += 30.0
        found = mask_ctc_search(model, encoded, beam=4, nbest=4, mask_threshold=1.1)[0]
        masked = masked_greedy(model, encoded.hidden[0], 1.1)
        for item in found:
            assert not {0, 6, 7} & set(item.tokens)
            assert all(a != 1 for a, b in zip(item.tokens, masked, strict=True) if b == 7)


def test_rescoring_adds_the_ctc_score_and_ranks_anew() -> None:
    model, encoded = student(4), random_encoded(12, 9)
    options: dict[str, Any] = {"beam": 6, "nbest": 6, "mask_threshold": 1.1}
    plain = mask_ctc_search(model, encoded, **options)
    rescored = mask_ctc_search(model, encoded, **options, ctc_rescoring_weight=2.0)
    with torch.no_grad():
        log_probs = model.ctc_log_probs(encoded.hidden)
    for row, (before, after) in enumerate(zip(plain, rescored, strict=True)):
        assert {item.tokens for item in before} == {item.tokens for item in after}
        for item in after:
            length = int(encoded.lengths[row])
            ctc = -torch.nn.functional.ctc_loss(
                log_probs[row, :length],
                torch.tensor(item.tokens),
                torch.tensor(length),
                torch.tensor(len(item.tokens)),
                reduction="none",
            )
            assert item.ctc == pytest.approx(float(ctc), abs=1e-3)
            floored = max(float(ctc), LOG_ZERO)
            assert item.score == pytest.approx(item.decoder + 2.0 * floored, abs=1e-3)
        scores = [item.score for item in after]
        assert scores == sorted(scores, reverse=True)


def test_what_the_ctc_cannot_align_keeps_a_number_and_ranks_last() -> None:
    unalignable = 0
    for seed in range(60):
        model, encoded = student(seed), random_encoded(3, seed=seed)
        options: dict[str, Any] = {"beam": 4, "nbest": 4, "mask_threshold": 1.1}
        found = mask_ctc_search(model, encoded, **options, ctc_rescoring_weight=1.0)[0]
        assert all(math.isfinite(item.score) for item in found)
        alignable = [item.ctc is not None and math.isfinite(item.ctc) for item in found]
        assert alignable == sorted(alignable, reverse=True)
        unalignable += alignable.count(False)
    assert unalignable > 0


def test_no_frames_and_all_blank_give_the_empty_hypothesis() -> None:
    model = student()
    empty = [NarHypothesis((), 0.0, 0.0, None)]
    assert mask_ctc_search(model, random_encoded(0, 0), beam=3) == [empty, empty]
    assert mask_ctc_search(model, random_encoded()) == []
    with torch.no_grad():
        one_frame = model.encode(torch.zeros(1, 1, 80), torch.tensor([1]))
        assert mask_ctc_search(model, one_frame) == [empty]
        model.ctc.ctc_lo.bias[0] = 1000.0
    assert mask_ctc_search(model, random_encoded(8), beam=2) == [empty]


@pytest.mark.parametrize(
    "options",
    [
        {"beam": 0},
        {"nbest": 0},
        {"tokens_per_iteration": 0},
        {"mask_threshold": -0.1},
        {"mask_threshold": math.nan},
        {"ctc_rescoring_weight": -1.0},
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        mask_ctc_search(student(), random_encoded(4), **options)


def test_a_teacher_or_a_model_in_training_is_refused() -> None:
    with pytest.raises(MismatchError):
        mask_ctc_search(tiny_model(), random_encoded(4))
    with pytest.raises(MismatchError):
        mask_ctc_search(student().train(), random_encoded(4))
