from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from kdpipe.errors import ConfigError, DataError, InputNotFoundError
from kdpipe.text.normalise import TextCase, TextSpaces, normalise
from kdpipe.text.tokenizer import Tokenizer, TokenizerKind, train_tokenizer

ENGLISH = ["THE CAT SAT", "ON THE MAT", "THAT'S A HAT", "THE MAT IS HERE", "A CAT ATE IT"] * 4
MANDARIN = ["而对楼市成交", "抑制作用最大的限购"]


@pytest.fixture(params=["char", "bpe"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    kind: TokenizerKind = request.param
    return train_tokenizer(ENGLISH, kind, None if kind == "char" else 30, tmp_path / "t.model")


def test_normalise_collapses_white_space_and_composes() -> None:
    assert normalise("  a \t b\n\u3000c ") == "a b c"
    assert normalise("e\u0301") == "\u00e9"
    assert normalise("Stra\u00dfe", "upper") == "STRASSE"
    assert normalise("ABC d", "lower") == "abc d"
    assert normalise("ABC d") == "ABC d"
    assert normalise(" 对 楼市 a", "upper", "remove") == "对楼市A"
    assert normalise("e \u0301", "keep", "remove") == "\u00e9"


@given(st.text(), st.sampled_from(["keep", "upper", "lower"]), st.sampled_from(["keep", "remove"]))
def test_normalise_twice_is_once(text: str, case: TextCase, spaces: TextSpaces) -> None:
    once = normalise(text, case, spaces)
    assert normalise(once) == once


def test_special_ids(tokenizer: Tokenizer) -> None:
    size = tokenizer.vocab_size
    assert len(tokenizer.pieces) == size
    assert (tokenizer.blank_id, tokenizer.unk_id) == (0, 1)
    assert (tokenizer.sos_eos_id, tokenizer.mask_id) == (size - 1, size)
    assert tokenizer.pieces[0] == "<blank>"
    assert tokenizer.pieces[-1] == "<sos/eos>"


def test_training_text_comes_back(tokenizer: Tokenizer) -> None:
    for text in ENGLISH:
        tokens = tokenizer.encode(text)
        assert all(2 <= token < tokenizer.sos_eos_id for token in tokens)
        assert tokenizer.decode(tokens) == text


def test_the_vocabulary_is_as_large_as_asked(tmp_path: Path) -> None:
    assert train_tokenizer(ENGLISH, "bpe", 30, tmp_path / "a.model").vocab_size == 30
    assert train_tokenizer(ENGLISH, "char", 8, tmp_path / "b.model").vocab_size == 8


def test_characters_are_single_tokens_with_a_space_of_its_own(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(ENGLISH, "char", None, tmp_path / "t.model")
    assert tokenizer.kind == "char"
    assert tokenizer.vocab_size == len(set("".join(ENGLISH))) + 3
    assert [tokenizer.pieces[i] for i in tokenizer.encode("A CAT")] == list("A\u2581CAT")


def test_mandarin_needs_no_space(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(MANDARIN, "char", None, tmp_path / "t.model")
    assert "\u2581" not in tokenizer.pieces
    assert tokenizer.decode(tokenizer.encode("最大的市")) == "最大的市"


def test_unknown_characters_are_unk(tokenizer: Tokenizer) -> None:
    assert tokenizer.unk_id in tokenizer.encode("CAT Ω")
    assert tokenizer.decode([tokenizer.unk_id]) == "<unk>"


def test_ids_no_search_may_emit_are_refused(tokenizer: Tokenizer) -> None:
    for bad in (tokenizer.blank_id, tokenizer.sos_eos_id, tokenizer.mask_id, -1):
        with pytest.raises(ValueError, match="not token ids"):
            tokenizer.decode([3, bad])


def test_the_fingerprint_tells_vocabularies_apart(tmp_path: Path) -> None:
    one = train_tokenizer(ENGLISH, "char", None, tmp_path / "a.model")
    same = train_tokenizer(ENGLISH, "char", None, tmp_path / "b.model")
    other = train_tokenizer([*ENGLISH, "XYZ"], "char", None, tmp_path / "c.model")
    assert one.fingerprint == same.fingerprint == Tokenizer.load(tmp_path / "a.model").fingerprint
    assert one.fingerprint != other.fingerprint


def test_survives_pickling(tokenizer: Tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.fingerprint == tokenizer.fingerprint
    assert copy.encode("THE CAT") == tokenizer.encode("THE CAT")


def test_long_sentences_are_trained_on(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["AB", "Q" * 9000], "char", None, tmp_path / "t.model")
    assert "Q" in tokenizer.pieces


def test_impossible_sizes_are_config_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at most") as caught:
        train_tokenizer(ENGLISH, "bpe", 5000, tmp_path / "t.model")
    largest = int(caught.value.remedy.split()[-1])
    assert train_tokenizer(ENGLISH, "bpe", largest, tmp_path / "t.model").vocab_size == largest
    for kind, size in (("bpe", None), ("bpe", 6), ("char", 3)):
        with pytest.raises(ConfigError):
            train_tokenizer(ENGLISH, kind, size, tmp_path / "t.model")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no training text"):
        train_tokenizer(["", ""], "char", None, tmp_path / "t.model")


def test_missing_damaged_and_foreign_models_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.model"
    with pytest.raises(InputNotFoundError):
        Tokenizer.load(path)
    path.write_bytes(b"junk")
    with pytest.raises(DataError):
        Tokenizer.load(path)
    with path.open("wb") as handle:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(ENGLISH),
            model_writer=handle,
            vocab_size=30,
            model_type="bpe",
            minloglevel=2,
        )
    with pytest.raises(DataError, match="special ids"):
        Tokenizer.load(path)
