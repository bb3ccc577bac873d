"""Hugging Face recognisers: what their N-best lists are, and which folders are refused."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import NoReturn

import pytest
import safetensors.torch
import torch
from tests.tiny_hf import edit_json, noise, tiny_speech2text, tiny_whisper, transformers

from kdpipe.errors import ConfigError, ModelFormatError
from kdpipe.models.foreign.hf import HfRecogniser, hf_architectures, load_hf

CPU = torch.device("cpu")
LETTERS = "ABCDEF"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> NoReturn:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper(tmp_path_factory.mktemp("hf") / "whisper", LETTERS, seed=2)


def forced_log_prob(recogniser: HfRecogniser, waveform: torch.Tensor, text: str) -> float:
    """log P of a text and the end by one teacher-forced pass, with the same tokens suppressed."""
    model, tokenizer = recogniser.model, recogniser.tokenizer
    end = model.generation_config.eos_token_id
    tokens = [*tokenizer(text, add_special_tokens=False)["input_ids"], end]
    features = recogniser.extractor(waveform.numpy(), sampling_rate=16_000, return_tensors="pt")
    inputs = torch.tensor([[*recogniser.prompt, *tokens[:-1]]])
    with torch.inference_mode():
        logits = model(**features, decoder_input_ids=inputs).logits[0, len(recogniser.prompt) - 1 :]
    rows = logits.log_softmax(-1)
    return float(sum(row[token] for row, token in zip(rows, tokens, strict=True)))


def test_the_nbest_is_by_the_log_probability_of_whole_texts(whisper: Path) -> None:
    recogniser = load_hf(whisper, "en", None, CPU)
    waveforms = [noise(1.0, 0), noise(0.4, 1)]
    lists = recogniser.nbest(waveforms, beam=6, nbest=4)
    for waveform, found in zip(waveforms, lists, strict=True):
        assert len(found) == 4
        assert len({hypothesis.text for hypothesis in found}) == 4
        scores = [hypothesis.log_prob for hypothesis in found]
        assert scores == sorted(scores, reverse=True)
        ended = [hypothesis for hypothesis in found if hypothesis.finished]
        assert ended
        for hypothesis in ended:
            expected = forced_log_prob(recogniser, waveform, hypothesis.text)
            assert hypothesis.log_prob == pytest.approx(expected, abs=1e-3)
    assert not all(hypothesis.finished for found in lists for hypothesis in found)


def test_a_beam_of_one_gives_the_greedy_text_and_its_log_probability(tmp_path: Path) -> None:
    recogniser = load_hf(tiny_whisper(tmp_path / "hf", LETTERS, seed=11), "en", None, CPU)
    heed_the_audio(recogniser)
    waveforms = [noise(seconds, 0) for seconds in (0.2, 0.5, 1.0, 1.5, 1.9)]
    lists = recogniser.nbest(waveforms, beam=1, nbest=4)
    assert [len(found) for found in lists] == [1] * len(waveforms)
    greedy = [found[0] for found in lists]
    # Those that end are padded to the length of those that do not.
    assert {hypothesis.finished for hypothesis in greedy} == {True, False}
    for waveform, hypothesis in zip(waveforms, greedy, strict=True):
        ((alone,),) = recogniser.nbest([waveform], beam=1, nbest=1)
        assert (alone.text, alone.finished) == (hypothesis.text, hypothesis.finished)
        assert alone.log_prob == pytest.approx(hypothesis.log_prob, abs=1e-3)
        if hypothesis.finished:
            expected = forced_log_prob(recogniser, waveform, hypothesis.text)
            assert hypothesis.log_prob == pytest.approx(expected, abs=1e-3)


def heed_the_audio(recogniser: HfRecogniser) -> None:
    """Larger weights, without which a random model says the same of whatever it hears."""
    with torch.no_grad():
        for name, weight in recogniser.model.named_parameters():
            large_already = name in ("model.encoder.embed_positions.weight", "proj_out.weight")
            if weight.dim() > 1 and not large_already:
                weight.mul_(20.0)


def test_language_and_task_begin_the_prompt(whisper: Path) -> None:
    settings = load_hf(whisper, "de", "translate", CPU).model.generation_config
    ids = {**settings.lang_to_id, **settings.task_to_id}
    start, silent = settings.decoder_start_token_id, settings.no_timestamps_token_id
    assert load_hf(whisper, "de", "translate", CPU).prompt == (
        start, ids["<|de|>"], ids["translate"], silent,
    )  # fmt: skip
    assert load_hf(whisper, "en", None, CPU).prompt[2] == ids["transcribe"]


@pytest.mark.parametrize(
    ("language", "task", "problem"),
    [
        (None, None, "it is multilingual"),
        ("tlh", None, "does not know that language"),
        ("en", "sing", "no such task"),
    ],
)
def test_what_whisper_cannot_be_asked(
    whisper: Path, language: str | None, task: str | None, problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_hf(whisper, language, task, CPU)


def test_an_english_whisper_takes_no_language(tmp_path: Path) -> None:
    folder = tiny_whisper(tmp_path / "en", LETTERS, multilingual=False)
    assert len(load_hf(folder, None, None, CPU).prompt) == 2
    with pytest.raises(ConfigError, match="English alone"):
        load_hf(folder, "en", None, CPU)
    edit_json(folder / "generation_config.json", is_multilingual=None)
    with pytest.raises(ModelFormatError, match="missing or outdated"):
        load_hf(folder, None, None, CPU)


def test_speech2text(tmp_path: Path) -> None:
    folder = tiny_speech2text(tmp_path / "s2t", LETTERS, seed=2)
    recogniser = load_hf(folder, None, None, CPU)
    assert recogniser.window_seconds == 4.0
    waveforms = [noise(1.0, 0), noise(0.5, 1)]
    together = recogniser.nbest(waveforms, beam=4, nbest=3)
    for waveform, found in zip(waveforms, together, strict=True):
        (alone,) = recogniser.nbest([waveform], beam=4, nbest=3)
        assert [h.text for h in found] == [h.text for h in alone]
    with pytest.raises(ConfigError, match="only Whisper"):
        load_hf(folder, "en", None, CPU)


def test_missing_weights_are_not_made_up(whisper: Path, tmp_path: Path) -> None:
    for file in whisper.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    del tensors["model.encoder.layer_norm.weight"]
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelFormatError, match=r"1 weights are missing.*layer_norm"):
        load_hf(tmp_path, "en", None, CPU)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ModelFormatError):
        load_hf(tmp_path, "en", None, CPU)


def test_the_architectures_are_those_of_speech() -> None:
    transformers()
    known = hf_architectures()
    assert {"whisper", "speech_to_text"} <= set(known)
    assert "bert" not in known
