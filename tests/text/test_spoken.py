"""Written text to the spelling of a student's texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdpipe.text.spoken import SpokenStyle, case_of, respell
from kdpipe.text.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def upper(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    out = tmp_path_factory.mktemp("text") / "tokenizer.model"
    return train_tokenizer(["ABCDEFGHIJKLM NOPQRSTUVWXYZ'"], "char", None, out)


@pytest.mark.parametrize(
    ("texts", "kind", "expected"),
    [
        (["ONE TWO"], "char", "upper"),
        (["one two"], "char", "lower"),
        (["One two"], "char", "keep"),
        (["一二三"], "char", "keep"),
        (["one two three four five six"], "bpe", "lower"),
    ],
)
def test_the_case_of_a_tokenizer(
    tmp_path: Path, texts: list[str], kind: str, expected: str
) -> None:
    size = 20 if kind == "bpe" else None
    tokenizer = train_tokenizer(texts, kind, size, tmp_path / "t.model")  # type: ignore[arg-type]
    assert case_of(tokenizer) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Hello, world. ", "HELLO WORLD"),
        ("It\u2019s twenty-one \u2014 isn't it?", "IT'S TWENTY ONE ISN'T IT"),
        ("\u201cQuoted\u201d\u2026", "QUOTED"),
        ("50% of AT&T", "50% OF AT&T"),
        ("...", ""),
    ],
)
def test_stripping_what_cannot_be_written(upper: Tokenizer, text: str, expected: str) -> None:
    assert respell(text, SpokenStyle(case="upper"), upper) == expected


def test_what_the_tokenizer_writes_stays(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["a, b. c"], "char", None, tmp_path / "t.model")
    assert respell("a, b; c.", SpokenStyle(), tokenizer) == "a, b c."
    kept = SpokenStyle(punctuation="keep")
    assert respell("a, b; c.", kept, tokenizer) == "a, b; c."
    assert respell("a b", SpokenStyle(spaces="remove"), tokenizer) == "ab"
