"""Hugging Face models with random weights, so small that a test makes them; no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

WHISPER_SPECIALS = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|de|>",
    "<|transcribe|>",
    "<|translate|>",
    "<|notimestamps|>",
)
WINDOW_SECONDS = 2


def transformers() -> Any:
    """The package, or a skip that says so."""
    return pytest.importorskip("transformers", reason="needs the extra kdpipe[hf]")


def tiny_whisper(
    folder: Path,
    letters: str,
    seed: int = 0,
    multilingual: bool = True,
    window_seconds: int = WINDOW_SECONDS,
) -> Path:
    """A Whisper that writes `letters`, as save_pretrained leaves it in `folder`."""
    library = transformers()
    tokenizer = _byte_tokenizer(letters)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in WHISPER_SPECIALS}
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    frames = 100 * window_seconds
    config = library.WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=16,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=frames // 2,
        max_target_positions=16,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = library.WhisperForConditionalGeneration(config)
    _sharpen(model.proj_out.weight)
    settings: dict[str, object] = {
        "is_multilingual": multilingual,
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "begin_suppress_tokens": [end],
        "suppress_tokens": [ids[token] for token in WHISPER_SPECIALS[1:]],
        "pad_token_id": end,
        "bos_token_id": end,
        "eos_token_id": end,
        "decoder_start_token_id": start,
    }
    if multilingual:
        settings["lang_to_id"] = {token: ids[token] for token in ("<|en|>", "<|de|>")}
        settings["task_to_id"] = {t: ids[f"<|{t}|>"] for t in ("transcribe", "translate")}
    model.generation_config = library.GenerationConfig(**settings)
    extractor = library.WhisperFeatureExtractor(feature_size=16, chunk_length=window_seconds)
    for part in (model, tokenizer, extractor):
        part.save_pretrained(folder)
    return folder


def tiny_speech2text(folder: Path, letters: str, seed: int = 0) -> Path:
    """A Speech2Text that writes `letters`, as save_pretrained leaves it in `folder`."""
    library = transformers()
    tokenizer = _byte_tokenizer(letters)
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    config = library.Speech2TextConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        conv_channels=16,
        input_feat_per_channel=16,
        max_source_positions=400,
        max_target_positions=12,
        pad_token_id=tokenizer.convert_tokens_to_ids("<|startoftranscript|>"),
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=end,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = library.Speech2TextForConditionalGeneration(config)
    _sharpen(model.lm_head.weight)
    extractor = library.Speech2TextFeatureExtractor(feature_size=16, num_mel_bins=16)
    for part in (model, tokenizer, extractor):
        part.save_pretrained(folder)
    return folder


def _sharpen(embedding: torch.Tensor) -> None:
    """Random weights say nothing; with larger ones some tokens are likelier than others."""
    with torch.no_grad():
        embedding.mul_(30.0)


def _byte_tokenizer(letters: str) -> Any:
    """A byte-level tokenizer, as Whisper's, with a token a character and no merges."""
    tokenizers = pytest.importorskip("tokenizers")
    symbols = dict.fromkeys([*WHISPER_SPECIALS, "\u0120", *letters])
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(list(WHISPER_SPECIALS))
    return transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", unk_token="<|endoftext|>"
    )


def edit_json(path: Path, **changes: object) -> None:
    """Change some keys of a JSON file; None takes a key out."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def noise(seconds: float, seed: int) -> torch.Tensor:
    """(samples,) 16 kHz noise."""
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.normal(0, 0.1, int(16_000 * seconds)).astype(np.float32))
