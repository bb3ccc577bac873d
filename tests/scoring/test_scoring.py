from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdpipe.errors import DataError
from kdpipe.files import write_json
from kdpipe.scoring import (
    ErrorCounts,
    ScoreReport,
    align_pairs,
    compare_systems,
    format_table,
    rate_interval,
    read_report,
    score_pairs,
    score_report,
    uses_spaces,
)


def edit_distance(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Levenshtein's, written plainly."""
    row = list(range(len(hypothesis) + 1))
    for i, expected in enumerate(reference, start=1):
        previous, row[0] = row[0], i
        for j, found in enumerate(hypothesis, start=1):
            change = previous + (expected != found)
            previous, row[j] = row[j], min(change, row[j] + 1, row[j - 1] + 1)
    return row[-1]


def test_substitutions_deletions_and_insertions_are_told_apart() -> None:
    references = {"a": "THE CAT SAT", "b": "ON A MAT", "c": "HERE"}
    hypotheses = {"c": "RIGHT HERE NOW", "a": "THE BAT SAT", "b": "A MAT"}
    counts = score_pairs(references, hypotheses)
    assert (counts.substitutions, counts.deletions, counts.insertions) == (1, 1, 2)
    assert counts.reference == 7
    assert counts.rate == pytest.approx(4 / 7)
    assert counts.ins_del_rate == pytest.approx(3 / 7)


words = st.text(alphabet="AB ", max_size=12)


@given(st.lists(st.tuples(words, words), max_size=6))
def test_errors_are_the_edit_distance_of_every_pair(pairs: list[tuple[str, str]]) -> None:
    references = {str(i): r for i, (r, _) in enumerate(pairs)}
    hypotheses = {str(i): h for i, (_, h) in enumerate(pairs)}
    by_word = align_pairs(references, hypotheses, "word")
    by_char = align_pairs(references, hypotheses, "char")
    joined = align_pairs(references, hypotheses, "char", spaces=False)
    for i, (r, h) in enumerate(pairs):
        assert by_word.errors[i] == edit_distance(r.split(), h.split())
        assert by_word.reference[i] == len(r.split())
        assert by_char.errors[i] == edit_distance(" ".join(r.split()), " ".join(h.split()))
        assert joined.errors[i] == edit_distance("".join(r.split()), "".join(h.split()))
        length_change = len(h.split()) - len(r.split())
        assert by_word.insertions[i] - by_word.deletions[i] == length_change


def test_spaces_count_as_characters_when_asked() -> None:
    assert score_pairs({"a": "A B"}, {"a": "AB"}, "char").rate == pytest.approx(1 / 3)
    assert score_pairs({"a": "A B"}, {"a": "AB"}, "char", spaces=False).rate == 0


def test_missing_and_extra_ids_are_errors() -> None:
    with pytest.raises(DataError, match=r"1 references have none \(b\), 1 have no reference \(c\)"):
        score_pairs({"a": "A", "b": "B"}, {"a": "A", "c": "B"})


def test_nothing_and_empty_references() -> None:
    assert score_pairs({}, {}) == ErrorCounts(0, 0, 0, 0)
    assert score_pairs({"a": ""}, {"a": ""}).rate == 0
    assert score_pairs({"a": ""}, {"a": "B C"}).rate == 2
    assert score_pairs({"a": "B C"}, {"a": ""}).deletions == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("THE CAT", True),
        ("今天天气", False),
        ("今天天气 OK", False),
        ("OK今", True),
        ("", True),
        ("カタカナ", False),
    ],
)
def test_scripts_without_spaces_are_known(text: str, expected: bool) -> None:
    assert uses_spaces([text]) is expected


def test_the_interval_agrees_with_the_binomial() -> None:
    generator = np.random.default_rng(0)
    errors = generator.binomial(10, 0.2, size=400)
    low, high = rate_interval(errors, np.full(400, 10))
    rate = errors.sum() / 4000
    deviation = errors.std() / 10 / np.sqrt(400)
    assert low == pytest.approx(rate - 1.96 * deviation, abs=0.002)
    assert high == pytest.approx(rate + 1.96 * deviation, abs=0.002)


def test_the_interval_is_seeded_and_does_not_depend_on_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors, reference = np.arange(50) % 4, np.full(50, 9)
    once = rate_interval(errors, reference, seed=1)
    assert once == rate_interval(errors, reference, seed=1)
    assert once != rate_interval(errors, reference, seed=2)
    monkeypatch.setattr("kdpipe.scoring.bootstrap.BLOCK_VALUES", 700)
    assert once == rate_interval(errors, reference, seed=1)


def test_a_large_set_takes_little_time_and_memory() -> None:
    errors = np.random.default_rng(0).integers(0, 5, 30_000)
    low, high = rate_interval(errors, np.full(30_000, 20), samples=500)
    assert 0.09 < low < high < 0.11


def test_systems_are_compared_on_the_same_utterances() -> None:
    generator = np.random.default_rng(0)
    hard = generator.integers(0, 8, 300)
    reference = np.full(300, 10)
    better = np.maximum(hard - generator.integers(0, 2, 300), 0)
    found = compare_systems(hard, better, reference)
    assert found.difference == pytest.approx((better - hard).sum() / 3000)
    assert found.ci95[0] < found.difference < found.ci95[1] < 0
    assert found.p_value < 0.001
    assert compare_systems(better, hard, reference).difference == -found.difference
    assert compare_systems(hard, hard, reference).p_value == 1
    with pytest.raises(DataError):
        compare_systems(hard, better[:-1], reference)


def test_p_values_of_equal_systems_are_uniform() -> None:
    generator = np.random.default_rng(0)
    reference = np.full(80, 10)
    values = []
    for _ in range(200):
        first, second = generator.binomial(10, 0.3, (2, 80))
        values.append(compare_systems(first, second, reference, samples=400).p_value)
    assert np.mean(np.array(values) < 0.1) == pytest.approx(0.1, abs=0.06)
    assert np.mean(np.array(values) < 0.5) == pytest.approx(0.5, abs=0.1)


REPORT_KEYS = [
    "split", "mode", "beam", "utterances", "skipped", "audio_seconds", "decode_seconds", "rtf",
    "threads", "device", "wer", "cer",
]  # fmt: skip


def make_report(references: dict[str, str], hypotheses: dict[str, str]) -> ScoreReport:
    return score_report(
        references,
        hypotheses,
        split="test",
        mode="mask-ctc",
        beam=10,
        utterances=len(hypotheses),
        skipped=1,
        audio_seconds=20.0,
        decode_seconds=1.0,
        threads=1,
        device="cpu",
    )


def test_score_json_has_the_agreed_keys(tmp_path: Path) -> None:
    report = make_report({"a": "THE CAT", "b": "SAT"}, {"a": "THE HAT", "b": "SAT"})
    content = report.to_json()
    assert list(content) == REPORT_KEYS
    assert content["rtf"] == 0.05
    keys = ["rate", "substitutions", "deletions", "insertions", "reference", "ci95"]
    assert list(content["wer"]) == list(content["cer"]) == keys
    assert content["wer"]["rate"] == pytest.approx(1 / 3)
    assert content["cer"]["reference"] == 10
    assert content["wer"]["ci95"][0] <= content["wer"]["rate"] <= content["wer"]["ci95"][1]
    write_json(tmp_path / "score.json", content)
    assert read_report(tmp_path / "score.json") == report


def test_mandarin_cer_is_without_spaces() -> None:
    report = make_report({"a": "今天 天气"}, {"a": "今天天气"})
    assert report.cer is not None
    assert (report.cer.rate, report.cer.reference) == (0, 4)


def test_without_references_only_the_speed_is_reported(tmp_path: Path) -> None:
    report = make_report({}, {})
    assert report.to_json()["wer"] is None
    write_json(tmp_path / "score.json", report.to_json())
    assert read_report(tmp_path / "score.json") == report
    assert "no reference" in format_table([report])


def test_other_files_are_no_reports(tmp_path: Path) -> None:
    contents: list[object] = [{}, [], {"split": "test"}, {"wer": 3, "cer": None}]
    for content in contents:
        (tmp_path / "score.json").write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(DataError, match="not a score"):
            read_report(tmp_path / "score.json")


def test_the_table_has_every_figure_in_its_column() -> None:
    counts = ErrorCounts(12, 3, 4, 200, (0.08, 0.11))
    report = ScoreReport("test", "ar", 10, 9, 0, 100.0, 25.0, 1, "cpu", counts, counts)
    header, first, second = format_table([report]).split("\n")
    assert " ".join(first.split()) == ("test ar 10 words 9.50 8.00 - 11.00 12 3 4 3.50 200 0.2500")
    assert second.split()[3] == "characters"
    assert len(header) == len(first) == len(second)
