"""Hugging Face speech-to-text models (Whisper, Speech2Text) as recognisers with an N-best list.

Everything is read from a local folder: no network, no code of the folder, weights from safetensors
alone. The optional package `transformers` is imported only here.
"""

from __future__ import annotations

import copy
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kdpipe.errors import ConfigError, DependencyError, ModelFormatError
from kdpipe.features.audio import SAMPLE_RATE

__all__ = ["HfRecogniser", "SpokenText", "hf_architectures", "load_hf", "whisper_languages"]

UNFINISHED = -1e8
"""Below this a score is transformers' mark (-1e9) of a beam that never ended."""
RESTORE = "Give the folder of a complete model, as save_pretrained or a download leaves it"


@dataclass(frozen=True)
class SpokenText:
    """One hypothesis: its text, log P(text, end of sentence | audio) in nats, and whether the
    search saw it end."""

    text: str
    log_prob: float
    finished: bool


@dataclass(frozen=True)
class HfRecogniser:
    """A model ready to transcribe; made by `load_hf`.

    `prompt` begins every hypothesis (Whisper: start, language, task, no timestamps).
    `window_seconds` is the longest audio the encoder takes, None where there is no limit;
    `pads_to_window` says that shorter audio costs as much as that.
    """

    model: Any
    extractor: Any
    tokenizer: Any
    prompt: tuple[int, ...]
    window_seconds: float | None
    pads_to_window: bool

    @torch.inference_mode()
    def nbest(
        self, waveforms: Sequence[Float[Tensor, "_"]], beam: int, nbest: int
    ) -> list[list[SpokenText]]:
        """The `nbest` best hypotheses (at most `beam`) of each 16 kHz waveform, best first.

        Beam search over log P without length normalisation, so the order is that of Eq. 9; a beam
        of one is greedy search.
        """
        inputs = self._features(waveforms)
        prompt = torch.tensor([self.prompt] * len(waveforms), device=self.model.device)
        count = min(beam, nbest)
        found = self._search(inputs, prompt, beam, count)
        tokens = found.sequences[:, len(self.prompt) :]
        scores = self._greedy_scores(tokens, found.logits) if beam == 1 else found.sequences_scores
        texts = self._texts(tokens, scores)
        return [texts[start : start + count] for start in range(0, len(texts), count)]

    def _features(self, waveforms: Sequence[Tensor]) -> dict[str, Tensor]:
        padding = {} if self.pads_to_window else {"padding": True}
        found = self.extractor(
            [waveform.numpy() for waveform in waveforms],
            sampling_rate=SAMPLE_RATE,
            return_tensors="pt",
            **padding,
        )
        return {name: tensor.to(self.model.device) for name, tensor in found.items()}

    def _search(
        self, inputs: dict[str, Tensor], prompt: Int[Tensor, "B P"], beam: int, nbest: int
    ) -> Any:
        """transformers' own beam search.

        Called on its base class: Whisper's `generate` answers num_return_sequences = N with N
        runs of the whole search and the best hypothesis of each, N times the same.
        """
        generation = importlib.import_module("transformers.generation")
        return generation.GenerationMixin.generate(
            self.model,
            **inputs,
            decoder_input_ids=prompt,
            generation_config=self._generation(beam, nbest),
        )

    def _generation(self, beam: int, nbest: int) -> Any:
        """The model's own settings (suppressed tokens among them), searched by log P."""
        settings = copy.deepcopy(self.model.generation_config)
        longest = getattr(self.model.config, "max_target_positions", None)
        changes: dict[str, object] = {
            "num_beams": beam,
            "num_return_sequences": nbest,
            "do_sample": False,
            "length_penalty": 0.0,
            "early_stopping": False,
            "return_dict_in_generate": True,
            "output_scores": beam > 1,
            "output_logits": beam == 1,
            "return_timestamps": False,
            "forced_decoder_ids": None,
            "max_new_tokens": None,
            "max_length": longest or settings.max_length,
        }
        for name, value in changes.items():
            setattr(settings, name, value)
        return settings

    def _greedy_scores(
        self, sequences: Int[Tensor, "N L"], logits: Sequence[Float[Tensor, "N V"]]
    ) -> Float[Tensor, "N"]:
        """log P of each sequence up to its first end, which greedy search does not add up.

        As in beam search, tokens that are suppressed keep their share of the probability.
        """
        columns = torch.split(sequences, 1, dim=1)
        steps = zip(logits, columns, strict=True)
        log_probs = torch.cat([step.log_softmax(1).gather(1, column) for step, column in steps], 1)
        ends = torch.isin(sequences, sequences.new_tensor(self._ends))
        padding = ends.cumsum(1) > ends
        return log_probs.masked_fill(padding, 0.0).sum(1)

    @property
    def _ends(self) -> list[int]:
        """The tokens that end a text."""
        ends = self.model.generation_config.eos_token_id
        if ends is None:
            return []
        return ends if isinstance(ends, list) else [ends]

    def _texts(self, sequences: Int[Tensor, "N L"], scores: Float[Tensor, "N"]) -> list[SpokenText]:
        ends = set(self._ends)
        return [
            SpokenText(
                self.tokenizer.decode(tokens, skip_special_tokens=True),
                score,
                score > UNFINISHED and not ends.isdisjoint(tokens),
            )
            for tokens, score in zip(sequences.tolist(), scores.tolist(), strict=True)
        ]


def load_hf(
    folder: Path, language: str | None, task: str | None, device: torch.device
) -> HfRecogniser:
    """Load the model of a folder in float32, in eval mode.

    `language` and `task` are for Whisper ("en", "transcribe"). Raises `DependencyError` without
    transformers, `ConfigError` for a language or task the model does not have (or needs),
    `ModelFormatError` for a folder whose parts do not make a speech-to-text model.
    """
    library = _transformers()
    model = _load_model(library, folder)
    common = {"local_files_only": True, "trust_remote_code": False}
    with _reading(folder):
        extractor = library.AutoFeatureExtractor.from_pretrained(str(folder), **common)
        tokenizer = library.AutoTokenizer.from_pretrained(str(folder), **common)
    rate = getattr(extractor, "sampling_rate", None)
    if rate != SAMPLE_RATE:
        raise ModelFormatError(folder, f"it hears audio of {rate} Hz", f"Only {SAMPLE_RATE} works")
    whisper = model.config.model_type == "whisper"
    return HfRecogniser(
        model=model.to(device).eval(),
        extractor=extractor,
        tokenizer=tokenizer,
        prompt=_prompt(model, folder, language, task),
        window_seconds=_window_seconds(model, extractor),
        pads_to_window=whisper,
    )


def hf_architectures() -> dict[str, str]:
    """The speech-to-text models that this transformers knows: model type to class."""
    _transformers()
    module = importlib.import_module("transformers.models.auto.modeling_auto")
    return dict(module.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES)


def _transformers() -> Any:
    """The package, offline and quiet.

    torchaudio is imported first in the way that works beside any torch: some feature extractors
    try it.
    """
    importlib.import_module("kdpipe.features.torchaudio_compat")
    if "transformers" not in sys.modules:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        library = importlib.import_module("transformers")
        importlib.import_module("transformers.generation")
    except ImportError as error:
        raise DependencyError("transformers", "hf", "a Hugging Face teacher") from error
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    return library


def _load_model(library: Any, folder: Path) -> Any:
    with _reading(folder):
        model, found = library.AutoModelForSpeechSeq2Seq.from_pretrained(
            str(folder),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    # transformers fills in random weights for those that are missing.
    wrong = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
    if wrong:
        raise ModelFormatError(
            folder, f"{len(wrong)} weights are missing or misshapen (first: {wrong[0]})", RESTORE
        )
    return model


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """transformers tells of a folder it cannot use by any of these."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelFormatError(folder, f"transformers cannot load it: {reason}", RESTORE) from error


def whisper_languages(generation: Any) -> list[str]:
    """Codes of the languages a Whisper generation config knows; none for an English-only model."""
    return [token.strip("<|>") for token in getattr(generation, "lang_to_id", None) or ()]


def _prompt(model: Any, folder: Path, language: str | None, task: str | None) -> tuple[int, ...]:
    generation = model.generation_config
    start = generation.decoder_start_token_id
    if start is None:
        start = model.config.decoder_start_token_id
    if model.config.model_type != "whisper":
        if language or task:
            raise _language_error(folder, "language", language or task, "only Whisper takes one")
        return (int(start),)
    prompt = [int(start), *_language_and_task(generation, folder, language, task)]
    silent = getattr(generation, "no_timestamps_token_id", None)
    return (*prompt, int(silent)) if silent is not None else tuple(prompt)


def _language_and_task(
    generation: Any, folder: Path, language: str | None, task: str | None
) -> list[int]:
    known = whisper_languages(generation)
    multilingual = getattr(generation, "is_multilingual", None)
    if multilingual is None:
        raise ModelFormatError(
            folder, "its generation_config.json is missing or outdated: no is_multilingual",
            "Take generation_config.json from the model that this one was fine-tuned from",
        )  # fmt: skip
    if not multilingual:
        if language or task:
            raise _language_error(folder, "language", language or task, "it knows English alone")
        return []
    if language is None or language not in known:
        problem = "it is multilingual" if language is None else "it does not know that language"
        raise _language_error(folder, "language", language, problem, f"one of {' '.join(known)}")
    tasks = generation.task_to_id
    if task is not None and task not in tasks:
        raise _language_error(folder, "task", task, "no such task", f"one of {' '.join(tasks)}")
    return [int(generation.lang_to_id[f"<|{language}|>"]), int(tasks[task or "transcribe"])]


def _language_error(
    folder: Path, key: str, value: object, problem: str, choice: str = ""
) -> ConfigError:
    remedy = f"Give --{key} with {choice}" if choice else "Leave --language and --task out"
    return ConfigError(str(folder), key, value, problem, remedy)


def _window_seconds(model: Any, extractor: Any) -> float | None:
    """Whisper hears a fixed window; Speech2Text has as many positions as frames of 10 ms."""
    if model.config.model_type == "whisper":
        return float(extractor.n_samples) / SAMPLE_RATE
    positions = getattr(model.config, "max_source_positions", None)
    return None if positions is None else float(positions) * 0.01
