"""Sentencepiece tokens with this project's ids.

Ids: blank 0, unk 1, the pieces 2..V-2, sos/eos V-1; mask = V, beyond the vocabulary. The model
file itself holds unk and the pieces only (ids 0..V-3), so any sentencepiece reads it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import sentencepiece

from kdpipe.errors import ConfigError, DataError, InputNotFoundError
from kdpipe.files import atomic_write_bytes, json_digest
from kdpipe.text.sentencepiece_model import is_character_model

__all__ = [
    "BLANK_ID",
    "SPACE_MARK",
    "UNK_ID",
    "UNK_TEXT",
    "Tokenizer",
    "TokenizerKind",
    "train_tokenizer",
]

TokenizerKind = Literal["char", "bpe"]
BLANK_ID = 0
UNK_ID = 1
# blank and sos/eos: in the vocabulary, not in the model file.
SPECIALS_OUTSIDE = 2
UNK_TEXT = "<unk>"
# blank, unk, one piece, sos/eos.
SMALLEST = 4
# Sentencepiece leaves out longer sentences (bytes) without an error; its default is 4192.
LONGEST_SENTENCE = 1 << 24
SPACE_MARK = "\u2581"


class Tokenizer:
    """Text to token ids and back; made by `Tokenizer.load` or `from_bytes`."""

    def __init__(self, model: bytes) -> None:
        self._model = model
        self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._pieces_in_model: int = self._processor.get_piece_size()

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a `tokenizer.model`.

        Raises `InputNotFoundError` when it is missing, `DataError` when it is damaged or was
        trained with other special ids (unk must be its id 0, with no bos, eos or pad).
        """
        if not path.is_file():
            raise InputNotFoundError(path, "tokenizer model", "Run kdpipe prepare again")
        return cls.from_bytes(path.read_bytes(), str(path))

    @classmethod
    def from_bytes(cls, model: bytes, where: str) -> Tokenizer:
        """Take the content of a `tokenizer.model`; `where` it comes from is for errors.

        Raises `DataError` as `load` does.
        """
        try:
            tokenizer = cls(model)
        except RuntimeError as error:
            raise DataError(where, "no sentencepiece model", "Copy or make it again") from error
        if tokenizer._processor.unk_id() != 0 or tokenizer._processor.is_control(1):
            raise DataError(where, "special ids are not this project's", "Train it here")
        return tokenizer

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[bytes]]:
        return Tokenizer, (self._model,)

    @property
    def model(self) -> bytes:
        """The content of its `tokenizer.model`."""
        return self._model

    @property
    def vocab_size(self) -> int:
        """V: blank, unk, pieces and sos/eos; not the mask."""
        return self._pieces_in_model + SPECIALS_OUTSIDE

    @property
    def blank_id(self) -> int:
        """The CTC blank: 0."""
        return BLANK_ID

    @property
    def unk_id(self) -> int:
        """What is not in the vocabulary: 1."""
        return UNK_ID

    @property
    def sos_eos_id(self) -> int:
        """Start and end of sentence, one id: V - 1."""
        return self.vocab_size - 1

    @property
    def mask_id(self) -> int:
        """The mask of a Mask-CTC decoder: V, beyond the vocabulary."""
        return self.vocab_size

    @cached_property
    def pieces(self) -> list[str]:
        """The V symbols in the order of their ids."""
        inner = [self._processor.id_to_piece(i) for i in range(1, self._pieces_in_model)]
        return ["<blank>", UNK_TEXT, *inner, "<sos/eos>"]

    @cached_property
    def kind(self) -> TokenizerKind:
        """ "char" when text is cut into single characters, else "bpe"."""
        return "char" if is_character_model(self._model) else "bpe"

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the ordered pieces and the special ids: equal means same ids."""
        specials = [self.blank_id, self.unk_id, self.sos_eos_id, self.mask_id]
        return json_digest({"pieces": self.pieces, "specials": specials})

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` as given (normalise it first), without sos/eos."""
        inner: list[int] = self._processor.encode(text)
        if 0 in inner and self.kind == "char":
            # Sentencepiece merges unknown neighbours; here every character is a token.
            pieces = self._processor.encode_as_pieces(text)
            counts = [1 if i else len(piece) for i, piece in zip(inner, pieces, strict=True)]
            inner = [i for i, count in zip(inner, counts, strict=True) for _ in range(count)]
        return [token + 1 for token in inner]

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of token ids, with single spaces; unk reads `<unk>`.

        Raises `ValueError` for blank, sos/eos, mask, or ids outside the vocabulary: no search
        may emit them.
        """
        inner = [int(token) - 1 for token in tokens]
        if any(not 0 <= token < self._pieces_in_model for token in inner):
            raise ValueError(f"not token ids of text: {[token + 1 for token in inner]}")
        text: str = self._processor.decode(inner)
        return " ".join(text.split())


def train_tokenizer(
    texts: Iterable[str], kind: TokenizerKind, vocab_size: int | None, out_path: Path
) -> Tokenizer:
    """Train on `texts`, write `out_path`, and return the tokenizer.

    `vocab_size` is V with the special tokens; None, for characters, takes all of them. A
    character vocabulary that is smaller leaves out the rarest. Texts are used as given.
    Raises `ConfigError` when the texts do not yield a vocabulary of that size.
    """
    sentences = [text for text in texts if text]
    if not sentences:
        remedy = "Give manifests with texts, or --like a folder that has a tokenizer"
        raise DataError("tokenizer", "no training text", remedy)
    size = _model_size(sentences, kind, vocab_size)
    model = _train_model(sentences, kind, size)
    atomic_write_bytes(out_path, model)
    return Tokenizer.load(out_path)


def _model_size(sentences: Sequence[str], kind: TokenizerKind, vocab_size: int | None) -> int:
    """Size of the model file's own vocabulary: unk and the pieces."""
    if vocab_size is None and kind == "bpe":
        raise ConfigError("tokenizer", "vocab_size", None, "bpe needs one", "Give --vocab-size")
    if vocab_size is not None and vocab_size < SMALLEST:
        raise ConfigError(
            "tokenizer", "vocab_size", vocab_size, "too small", f"Give {SMALLEST} or more"
        )
    if kind == "bpe":
        return int(vocab_size or 0) - SPECIALS_OUTSIDE
    every = 1 + len({SPACE_MARK if char == " " else char for text in sentences for char in text})
    return every if vocab_size is None else min(every, vocab_size - SPECIALS_OUTSIDE)


def _train_model(sentences: Sequence[str], kind: TokenizerKind, size: int) -> bytes:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=kind,
            vocab_size=size,
            character_coverage=1.0,
            normalization_rule_name="identity",
            # A leading space mark joins the first word's pieces; as a token of its own (char)
            # it would only lengthen every sentence.
            add_dummy_prefix=kind == "bpe",
            remove_extra_whitespaces=False,
            max_sentence_length=LONGEST_SENTENCE,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            unk_surface=UNK_TEXT,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ConfigError(
            "tokenizer",
            "vocab_size",
            size + SPECIALS_OUTSIDE,
            "the texts do not yield it",
            _size_remedy(str(error)),
        ) from error
    return model.getvalue()


def _size_remedy(message: str) -> str:
    limit = re.search(r"value <= (\d+)", message)
    if limit is None:
        return f"Choose another --vocab-size ({message})"
    return f"These texts allow a --vocab-size of at most {int(limit[1]) + SPECIALS_OUTSIDE}"
