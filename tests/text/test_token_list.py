"""Another toolkit's token list as a tokenizer: the same ids for every text."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.errors import DataError
from kdpipe.text.sentencepiece_model import piece_names
from kdpipe.text.token_list import bpe_tokenizer, char_tokenizer
from kdpipe.text.tokenizer import Tokenizer

CHARS = ["<blank>", "<unk>", "<space>", "A", "B", "'", "<noise>", "好", "<sos/eos>"]
WORDS = ["the", "cat", "kitten", "sitting", "mitten", "sat", "theme", "<noise>"]


def espnet_characters(text: str, tokens: Sequence[str], symbols: Sequence[str]) -> list[int]:
    """The rule of ESPnet's CharTokenizer and TokenIDConverter, for clarity."""
    ids = {token: number for number, token in enumerate(tokens)}
    found = []
    while text:
        whole = next((symbol for symbol in symbols if text.startswith(symbol)), text[0])
        found.append(ids.get("<space>" if whole == " " else whole, 1))
        text = text[len(whole) :]
    return found


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="AB' C?好é<noise>\u3000", max_size=12), st.booleans())
def test_characters_get_the_ids_of_the_list(text: str, symbols: bool) -> None:
    tokenizer = Tokenizer(char_tokenizer(CHARS, symbols))
    expected = espnet_characters(text, CHARS, ["<noise>"] if symbols else [])
    assert tokenizer.encode(text) == expected


def test_the_list_is_kept_id_for_id() -> None:
    tokenizer = Tokenizer.from_bytes(char_tokenizer(CHARS), "token_list")
    assert tokenizer.pieces == ["▁" if token == "<space>" else token for token in CHARS]
    assert (tokenizer.kind, tokenizer.vocab_size) == ("char", len(CHARS))
    assert tokenizer.decode(tokenizer.encode("BA 好'A ?")) == "BA 好'A <unk>"
    assert tokenizer.decode([6, 2, 3]) == "<noise> A"


def test_a_list_without_a_space_has_none() -> None:
    tokenizer = Tokenizer(char_tokenizer(["<blank>", "<unk>", "好", "吗", "<sos/eos>"]))
    assert tokenizer.encode("好 吗") == [2, 1, 3]
    assert tokenizer.decode([2, 3]) == "好吗"


def peer_model(kind: str, seed: int = 0) -> bytes:
    """A model as ESPnet's recipes train it: with <s> and </s>."""
    generator = random.Random(seed)
    texts = [" ".join(generator.choices(WORDS, k=6)) for _ in range(100)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type=kind, vocab_size=30,
        user_defined_symbols=["<noise>"], hard_vocab_limit=False, minloglevel=2, num_threads=1,
    )  # fmt: skip
    return model.getvalue()


def listed(model: bytes, shuffled: bool = False) -> list[str]:
    names = [name for name, _ in piece_names(model) if name not in ("<unk>", "<s>", "</s>")]
    if shuffled:
        random.Random(1).shuffle(names)
    return ["<blank>", "<unk>", *names, "<sos/eos>"]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_pieces_get_the_ids_of_the_list(kind: str, shuffled: bool) -> None:
    model = peer_model(kind)
    tokens = listed(model, shuffled)
    tokenizer = Tokenizer(bpe_tokenizer(tokens, model))
    assert tokenizer.pieces == tokens
    assert tokenizer.kind == "bpe"
    peer: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
    generator = random.Random(2)
    ids = {token: number for number, token in enumerate(tokens)}
    for _ in range(100):
        text = "".join(generator.choices("theca kis<>noNé?  ", k=9)) + generator.choice(WORDS)
        assert tokenizer.encode(text) == [ids.get(p, 1) for p in peer.encode_as_pieces(text)]
    assert tokenizer.decode(tokenizer.encode("the kitten sat")) == "the kitten sat"


def test_equal_lists_have_equal_fingerprints() -> None:
    model = peer_model("bpe")
    prints = {
        Tokenizer(bpe_tokenizer(tokens, model)).fingerprint
        for tokens in (listed(model), listed(model), listed(model, shuffled=True))
    }
    assert len(prints) == 2


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (["<blank>", "<unk>", "x!", "<sos/eos>"], "no piece for 1 tokens"),
        (["<blank>", "<unk>", "a", "a", "<sos/eos>"], "'a' comes twice"),
        (["<blank>", "<unk>", "<s>", "<sos/eos>"], "no piece for 1 tokens"),
    ],
)
def test_a_list_of_another_model_is_refused(tokens: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        bpe_tokenizer(tokens, peer_model("bpe"))


def test_pieces_that_the_list_lacks_are_named() -> None:
    model = peer_model("bpe")
    tokens = listed(model)
    with pytest.raises(DataError, match=f"lacks 1 pieces .*'{tokens[2]}'"):
        bpe_tokenizer([*tokens[:2], *tokens[3:]], model)


@pytest.mark.parametrize("content", [b"pieces", b"\x0a\x7f", b"\x0a\x00", b"\xff" * 20])
def test_bytes_that_are_no_model_are_refused(content: bytes) -> None:
    with pytest.raises(DataError, match=r"bpe\.model"):
        bpe_tokenizer(["<blank>", "<unk>", "a", "<sos/eos>"], content)


def test_a_character_twice_is_refused() -> None:
    with pytest.raises(DataError, match="comes twice"):
        char_tokenizer(["<blank>", "<unk>", "<space>", "▁", "<sos/eos>"])
