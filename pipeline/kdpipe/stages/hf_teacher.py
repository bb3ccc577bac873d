"""A Hugging Face teacher in front of a split: N-best text as sequence-level targets.

Its hypotheses are respelled as the student's texts are and cut into the data's tokens. Hypotheses
that become the same tokens are one: their probabilities are added. Those that are empty, that the
tokenizer cannot write, that CTC cannot align or that the search did not end are left out and
counted. P' of Eq. 9 is over what is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from kdpipe.batching import sorted_batches
from kdpipe.errors import ConfigError
from kdpipe.features.prepared import PreparedData, PreparedSplit
from kdpipe.models import subsampled_lengths
from kdpipe.models.foreign.hf import HfRecogniser, SpokenText, load_hf
from kdpipe.stages.hf_card import HF_FOLDER, HfCard, read_hf_card, teacher_digest
from kdpipe.stages.nbest_targets import as_stored, is_alignable, nbest_status
from kdpipe.stages.speaker import Dense, DumpSettings, Speaker, base_header
from kdpipe.store import (
    EMPTY_POSTERIOR,
    StoredHypothesis,
    StoreHeader,
    TeacherIdentity,
    UtteranceTargets,
)
from kdpipe.text.normalise import TextSpaces
from kdpipe.text.spoken import SpokenStyle, case_of, respell
from kdpipe.text.tokenizer import Tokenizer

__all__ = ["check_nbest", "hf_header", "hf_speaker", "spoken_targets"]

MAX_UTTERANCES = 256
SCORE_DEFINITIONS = {
    "attention": "log P(text, end of sentence | X), nats, summed over spellings of the same tokens",
    "ctc": "0: the teacher has no CTC head",
    "joint": "the same as attention, nats",
    "posterior": "exp(joint) over the sum of exp(joint) of the stored n-best (Eq. 9)",
}


@dataclass(frozen=True)
class Respelling:
    """How a teacher's text becomes the data's tokens."""

    tokenizer: Tokenizer
    style: SpokenStyle

    def tokens(self, text: str) -> tuple[int, ...]:
        """Token ids of the respelled text."""
        return tuple(self.tokenizer.encode(respell(text, self.style, self.tokenizer)))


def hf_speaker(
    teacher: Path,
    prepared: PreparedData,
    split: PreparedSplit,
    settings: DumpSettings,
    device: torch.device,
    licence: str,
) -> Speaker:
    """The teacher of an imported Hugging Face model in front of `split`.

    Raises `ConfigError` for settings of posteriors, which it has none of, and what `load_hf` and
    `read_hf_card` raise.
    """
    _check_settings(settings)
    card = read_hf_card(teacher)
    tokenizer = Tokenizer.load(prepared.tokenizer)
    respelling = Respelling(tokenizer, _style(prepared, tokenizer, settings))
    model = load_hf(teacher / HF_FOLDER, card.language or None, card.task or None, device)
    counts: Counter[str] = Counter()

    def speak(
        batches: Iterable[Sequence[int]],
    ) -> Iterator[Iterator[tuple[UtteranceTargets, Dense | None]]]:
        for batch in batches:
            yield _speak_batch(model, prepared, split, batch, respelling, settings, counts)

    return Speaker(
        name=card.name,
        header=hf_header(card, prepared, split, respelling, settings, licence),
        batches=_batches(model, prepared, split, settings),
        speak=speak,
        remarks=lambda: _remarks(counts),
    )


def hf_header(
    card: HfCard,
    prepared: PreparedData,
    split: PreparedSplit,
    respelling: Respelling,
    settings: DumpSettings,
    licence: str,
) -> StoreHeader:
    """The header of a store of n-best lists alone."""
    style = respelling.style
    decode = {
        "beam": settings.beam,
        "length_penalty": 0.0,
        "language": card.language,
        "task": card.task,
        "text_case": style.case,
        "text_spaces": style.spaces,
        "punctuation": style.punctuation,
        "batch_frames": settings.batch_frames,
    }
    teacher = TeacherIdentity(card.name, teacher_digest(card))
    header = base_header(teacher, prepared, respelling.tokenizer, split, settings, decode, licence)
    return replace(header, streams=("nbest",), score_definitions=dict(SCORE_DEFINITIONS))


def spoken_targets(
    found: Sequence[SpokenText], frames: int, respelling: Respelling
) -> tuple[tuple[StoredHypothesis, ...], Counter[str], str]:
    """The N-best of one utterance in the data's tokens, best first.

    `frames` are the utterance's encoder frames. Also how many hypotheses were left out or merged,
    by reason, and why the first was left out ("no-nbest" where it was not).
    """
    counts: Counter[str] = Counter()
    scores: dict[tuple[int, ...], float] = {}
    first = "no-nbest"
    for position, hypothesis in enumerate(found):
        tokens = respelling.tokens(hypothesis.text)
        problem = _problem(hypothesis, tokens, frames, respelling.tokenizer)
        if problem:
            counts[problem] += 1
            first = first if position else problem
            continue
        counts["merged"] += tokens in scores
        scores[tokens] = float(np.logaddexp(scores.get(tokens, -np.inf), hypothesis.log_prob))
    best = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    return as_stored([(tokens, joint, 0.0, joint) for tokens, joint in best]), counts, first


def _problem(
    hypothesis: SpokenText, tokens: tuple[int, ...], frames: int, tokenizer: Tokenizer
) -> str | None:
    if not hypothesis.finished:
        return "unfinished"
    if not tokens:
        return "empty"
    if tokenizer.unk_id in tokens:
        return "unknown-token"
    return None if is_alignable(tokens, frames) else "unalignable"


def _speak_batch(
    model: HfRecogniser,
    prepared: PreparedData,
    split: PreparedSplit,
    batch: Sequence[int],
    respelling: Respelling,
    settings: DumpSettings,
    counts: Counter[str],
) -> Iterator[tuple[UtteranceTargets, Dense | None]]:
    utterances = [split.utterance(index) for index in batch]
    window = model.window_seconds
    heard = [u for u in utterances if window is None or u.duration <= window]
    waveforms = [prepared.waveform(utterance) for utterance in heard]
    lists = model.nbest(waveforms, settings.beam, settings.nbest) if heard else []
    spoken = {u.id: texts for u, texts in zip(heard, lists, strict=True)}
    for utterance in utterances:
        if utterance.id not in spoken:
            counts["too-long"] += 1
            yield _silent(utterance.id, "too-long"), None
            continue
        frames = subsampled_lengths(utterance.num_frames)
        nbest, left_out, first = spoken_targets(spoken[utterance.id], frames, respelling)
        counts.update(left_out)
        status = nbest_status(len(nbest), settings.nbest) if utterance.tokens else "pseudo"
        targets = _silent(utterance.id, status if nbest else first)
        yield replace(targets, nbest=nbest), None


def _silent(identifier: str, status: str) -> UtteranceTargets:
    """The targets of an utterance the teacher said nothing usable about."""
    return UtteranceTargets(identifier, EMPTY_POSTERIOR, EMPTY_POSTERIOR, (), (), status)


def _batches(
    model: HfRecogniser, prepared: PreparedData, split: PreparedSplit, settings: DumpSettings
) -> list[list[int]]:
    """Like-long utterances together; under a model that pads to its window all are that long."""
    lengths = split.frame_counts
    if model.pads_to_window and model.window_seconds is not None:
        shift = prepared.filterbank.frame_shift_seconds
        lengths = np.maximum(lengths, round(model.window_seconds / shift))
    return sorted_batches(lengths.tolist(), settings.batch_frames, MAX_UTTERANCES)


def _style(prepared: PreparedData, tokenizer: Tokenizer, settings: DumpSettings) -> SpokenStyle:
    spaces: TextSpaces = prepared.settings["text_spaces"]
    case = case_of(tokenizer) if settings.text_case == "auto" else settings.text_case
    return SpokenStyle(case, spaces, settings.punctuation)


def _remarks(counts: Counter[str]) -> list[str]:
    left_out = {name: n for name, n in sorted(counts.items()) if n and name not in _NO_LOSS}
    listed = ", ".join(f"{name} {n:,}" for name, n in left_out.items())
    remarks = [f"hypotheses left out: {listed}"] if listed else []
    if counts["merged"]:
        remarks.append(f"hypotheses merged with one of the same tokens: {counts['merged']:,}")
    if counts["too-long"]:
        remarks.append(f"utterances longer than the teacher's window: {counts['too-long']:,}")
    return remarks


_NO_LOSS = ("merged", "too-long")


def check_nbest(settings: DumpSettings) -> None:
    """Raise `ConfigError` for longer lists than its beam search, unlike this project's, ends with.

    Of a new store alone: one that was begun so goes on, and is repaired.
    """
    most = settings.beam
    if settings.nbest > most:
        raise ConfigError(
            "teacher-dump", "--nbest", settings.nbest,
            f"a Hugging Face teacher's search ends with {most} at most",
            f"Use --nbest {most} or --beam {settings.nbest}",
        )  # fmt: skip


def _check_settings(settings: DumpSettings) -> None:
    """Settings of posteriors and of a CTC head would have no effect."""
    plain = DumpSettings()
    for key in ("ctc_weight", "top_k", "min_prob", "codec"):
        if getattr(settings, key) != getattr(plain, key):
            raise ConfigError(
                "teacher-dump", f"--{key.replace('_', '-')}", getattr(settings, key),
                "a Hugging Face teacher gives text alone: no CTC head, no posteriors",
                "Leave it out",
            )  # fmt: skip
