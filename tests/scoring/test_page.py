"""The page from made-up material: figures, parts, escaping, and that it asks for nothing."""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.scoring.made_up import made_up, made_up_report

from kdpipe.scoring import align_pairs
from kdpipe.scoring.alignment import align_units
from kdpipe.scoring.page import DecodeRun, Material, page_sections, render_page
from kdpipe.scoring.page.lengths import length_bins, length_rates
from kdpipe.scoring.page.markup import Html, el, join
from kdpipe.scoring.page.plot import Axis, dodge, log_axis, plain_ticks
from kdpipe.scoring.page.rates import comparisons
from kdpipe.scoring.page.worst import worst_ids

HOSTILE = "\"><script>alert(1)</script><img/src=x/onerror=alert(2)>'&amp;\x00\u202e"
ALL = ["results", "rates", "training", "speed", "lengths", "worst", "store", "confidence",
       "posteriors"]  # fmt: skip


class Outline(HTMLParser):
    """Every tag with the names of its attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.values: list[str] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(key for key, _ in attrs)))
        self.values += [value or "" for _, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_every_part_is_drawn() -> None:
    sections = page_sections(made_up())
    assert [section.name for section in sections] == ALL
    for section in sections:
        assert section.body, section.missing
        if section.name != "worst":
            assert "<svg" in section.body or "<table" in section.body
    worst = sections[ALL.index("worst")].body
    assert worst
    assert 'class="unit es"' in worst
    assert 'class="unit ei"' in worst


def test_what_is_missing_is_named_with_a_way_to_get_it() -> None:
    page = render_page(Material("nothing"))
    assert page.count("<section") == 1
    for command in ("kdpipe decode", "kdpipe teacher-dump", "kdpipe train-student", "--data DATA"):
        assert command in page
    no_data = [replace(d, errors=None, texts={}) for d in made_up().decodes]
    names = {s.name: s.missing for s in page_sections(replace(made_up(), decodes=tuple(no_data)))}
    assert "--data DATA" in names["lengths"]
    assert "--data DATA" in names["worst"]
    assert not names["results"]


def test_strings_of_users_never_become_markup() -> None:
    """The page has the same elements, whatever the strings are."""
    plain, hostile = (
        Outline(render_page(made_up(change)))
        for change in (lambda text: f"{text}-{'x' * len(HOSTILE)}", lambda text: text + HOSTILE)
    )
    assert hostile.tags == plain.tags
    assert sum(tag == "script" for tag, _ in hostile.tags) == 1
    assert not any(tag in ("img", "iframe", "object", "link") for tag, _ in hostile.tags)
    assert any("<script>alert(1)</script>" in text for text in hostile.text)
    assert "\x00" not in render_page(made_up(lambda text: text + HOSTILE))


def test_the_page_allows_only_its_own_script_and_style() -> None:
    page = render_page(made_up())
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src &#x27;none&#x27;")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        ((content,),) = [re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src &#x27;sha256-{digest}&#x27;" in policy
    assert not any(value.startswith(("http", "//")) for value in Outline(page).values)
    assert " style=" not in page


def test_a_search_that_ran_twice_is_still_compared() -> None:
    material = made_up()
    pairs = comparisons(material, "test")
    plain = {pair[0].name: pair[0] for pair, _ in pairs}
    again = tuple(replace(decode, name=f"{name}-again") for name, decode in plain.items())
    twice = replace(material, decodes=(*material.decodes, *again))
    assert pairs
    assert len(comparisons(twice, "test")) == 2 * len(pairs)


def test_a_plain_student_of_another_size_is_no_measure() -> None:
    material = made_up()
    models = tuple(
        replace(m, parameters=1) if m.role == "plain student" else m for m in material.models
    )
    assert comparisons(material, "test")
    assert comparisons(replace(material, models=models), "test") == []


def test_a_student_that_is_not_at_hand_is_no_plain_one() -> None:
    material = made_up()
    models = tuple(
        replace(m, known=False) if m.role == "plain student" else m for m in material.models
    )
    assert comparisons(replace(material, models=models), "test") == []
    page = render_page(replace(material, models=models))
    assert "plain student" not in page


def test_the_figures_are_those_of_the_scores() -> None:
    material = made_up()
    results = page_sections(material)[0].body
    assert results
    for decode in material.decodes:
        wer, cer = decode.report.wer, decode.report.cer
        assert wer is not None
        assert cer is not None
        for text in (f"{100 * wer.rate:.1f}", f"{100 * cer.rate:.1f}", f"{decode.report.rtf:.4f}",
                     f"{100 * wer.ci95[0]:.1f}\u2013{100 * wer.ci95[1]:.1f}",
                     f"{100 * wer.ins_del_rate:.1f}", "1.00 M"):  # fmt: skip
            assert f">{text}<" in results
    assert ">I+D %, words<" in results


def mandarin() -> DecodeRun:
    """Six characters of which one was left out: one word, which is another one."""
    report = made_up_report({"a": "今天天气很好"}, {"a": "今天气很好"}, "test", "ctc", 1)
    return DecodeRun("zh", "student", report, {}, "char")


def test_insertions_and_deletions_are_of_characters_where_there_are_no_words() -> None:
    material = Material("runs", decodes=(mandarin(),))
    wer = mandarin().report.wer
    assert wer is not None
    assert wer.ins_del_rate == 0.0
    results = page_sections(material)[0].body or ""
    assert ">I+D %, characters<" in results
    assert 'data-tip="0 insertions and 1 deletions of 6 characters">16.7<' in results
    assert ">0.0<" not in results


def test_outputs_in_words_and_in_characters_each_name_their_unit() -> None:
    english = next(d for d in made_up().decodes if d.report.split == "test")
    results = page_sections(Material("runs", decodes=(mandarin(), english)))[0].body or ""
    assert ">I+D %, words or characters<" in results
    assert "of 6 characters" in results
    assert re.search(r"deletions of \d+ words", results)


def test_equal_material_gives_equal_bytes() -> None:
    assert render_page(made_up()) == render_page(made_up())


def test_material_at_its_limits_is_drawn() -> None:
    """One epoch, losses of 0 and NaN, no errors at all, no reference words, no RTF."""
    full = made_up()
    records = ({"type": "epoch", "epoch": 1, "ctc": 0.0, "mlm": float("nan"), "dev_cer": 0.0},)
    models = tuple(replace(model, epochs=records, parameters=None) for model in full.models)
    perfect = {"a": ("one", "one"), "b": ("", "")}
    errors = align_pairs({k: v[0] for k, v in perfect.items()},
                         {k: v[1] for k, v in perfect.items()})  # fmt: skip
    decode = full.decodes[0]
    report = replace(decode.report, decode_seconds=0.0, cer=None, wer=None)
    zero = replace(decode.report.wer, substitutions=0, deletions=0, insertions=0, ci95=(0.0, 0.0))  # type: ignore[type-var]
    decodes = (
        replace(decode, report=report, errors=None, texts={}),
        replace(decode, report=replace(decode.report, wer=zero, cer=zero), errors=errors,
                texts=perfect),
    )  # fmt: skip
    page = render_page(replace(full, models=models, decodes=decodes, pictures=()))
    assert "nan" not in page.lower().replace("name", "")
    assert "0.0" in page


def test_worst_utterances_come_worst_first() -> None:
    decode = made_up().decodes[1]
    assert decode.errors is not None
    found = worst_ids(decode)
    assert [errors for _, errors, _ in found] == sorted((e for _, e, _ in found), reverse=True)
    assert found[0] == ("utt5", 5, 7)
    assert len(worst_ids(decode, 2)) == 2


@pytest.mark.parametrize(
    ("reference", "hypothesis", "unit", "fates"),
    [
        ("A B C", "A X C D", "word", ["equal", "substitute", "equal", "insert"]),
        ("A B", "", "word", ["delete", "delete"]),
        ("", "A", "word", ["insert"]),
        ("", "", "word", []),
        ("今天 好", "今日好", "char", ["equal", "substitute", "equal"]),
    ],
)
def test_alignment_is_unit_by_unit(
    reference: str, hypothesis: str, unit: str, fates: list[str]
) -> None:
    units = align_units(reference, hypothesis, unit)  # type: ignore[arg-type]
    assert [found.fate for found in units] == fates
    between = " " if unit == "word" else ""
    said = between.join(found.reference for found in units if found.reference)
    assert said == between.join(reference.split())


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60))
def test_every_utterance_with_words_is_in_one_range_of_lengths(lengths: list[int]) -> None:
    bins = length_bins(np.array(lengths, dtype=np.int64))
    for length in lengths:
        assert sum(first <= length <= last for first, last in bins) == (length > 0)
    assert len(bins) <= 5


def test_rates_by_length_add_up_to_the_whole() -> None:
    errors = made_up().decodes[3].errors
    assert errors is not None
    rates = length_rates(errors, [(1, 100)])
    assert rates.sum() == pytest.approx(errors.errors.sum() / errors.reference.sum())


@given(st.floats(0, 1e6), st.floats(1e-6, 1e6))
@example(879609.9999999999, 1e-6)
def test_ticks_are_few_and_inside(low: float, span: float) -> None:
    ticks = plain_ticks(low, low + span)
    assert 1 <= len(ticks) <= 8
    # A tick is as exact as floats of its size are, which may be coarser than the span's millionth.
    slack = span * 1e-6 + 2 * math.ulp(low + span)
    assert all(low - slack <= tick <= low + span + slack for tick in ticks)


@given(st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=9))
def test_a_log_axis_holds_its_values_and_has_ticks(values: list[float]) -> None:
    axis = log_axis(values, 200.0, 20.0)
    assert all(20.0 <= axis.at(value) <= 200.0 for value in values)
    assert 1 <= len(axis.ticks()) <= 8
    assert Axis(1.0, 1.0, 0.0, 10.0).at(1.0) == 5.0


@given(st.lists(st.floats(0, 100), max_size=6))
def test_names_never_touch(places: list[float]) -> None:
    moved = dodge(places, 13.0, 0.0, 100.0)
    ordered = sorted(moved)
    assert all(b - a >= 13.0 - 1e-6 for a, b in itertools.pairwise(ordered))


def test_only_what_is_marked_as_markup_is_not_escaped() -> None:
    assert el("p", "<b>", Html("<i>"), title='"') == '<p title="&quot;">&lt;b&gt;<i></p>'
    assert join(["<", ">"], "&") == "&lt;&amp;&gt;"
    assert el("br", class_=None) == "<br>"


def test_a_model_has_one_colour_all_over_the_page() -> None:
    """A legend of some models has the colours that all models were given together."""
    full = made_up()
    untrained = tuple(replace(m, epochs=()) if m.name == "plain" else m for m in full.models)
    sections = {s.name: s.body or "" for s in page_sections(replace(full, models=untrained))}
    for name in ("training", "speed", "confidence"):
        assert '<span class="swatch k1"></span><b>student</b>' in sections[name]
    assert "<b>plain</b>" not in sections["training"]
