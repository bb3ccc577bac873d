"""decode: hyp.jsonl and score.json, from a prepared split or straight from audio files."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from kdpipe.batching import Batch, collate, pad_tokens
from kdpipe.checkpoint import ModelBundle, load_model, weights_digest
from kdpipe.errors import DataError, InputNotFoundError, KdpipeError, UtteranceTooLongError
from kdpipe.features.audio import read_audio
from kdpipe.features.prepared import PreparedData, PreparedSplit
from kdpipe.files import read_jsonl, write_json, write_jsonl
from kdpipe.models import subsampled_lengths
from kdpipe.progress import progress_bar
from kdpipe.scoring import ScoreReport, read_report, score_report
from kdpipe.search.settings import check_lengths
from kdpipe.stages.agreement import require_same_channel, require_same_filterbank
from kdpipe.stages.claim import claimed, mark_complete
from kdpipe.stages.device import keep_freed_memory, pick_device
from kdpipe.stages.recognise import (
    Hypothesis,
    SearchSettings,
    check_search,
    read_tokens,
    recognise,
    resolve_mode,
)

__all__ = ["Runtime", "decode_audio", "decode_split", "decode_waveforms", "waveform_batch"]

PARTIAL = "partial.jsonl"
REJECTED = "rejected.jsonl"


@dataclass(frozen=True)
class Runtime:
    """How decoding runs; none of it changes a hypothesis."""

    device: str = "auto"
    threads: int = 1
    batch_size: int = 1


def decode_split(
    model: Path, data: Path, split: str, out: Path, settings: SearchSettings, runtime: Runtime
) -> ScoreReport:
    """Decode a prepared split into `out` and score it against its texts.

    Resumes what an earlier call began. Utterances too long for the search are skipped, counted,
    and listed in `rejected.jsonl` with the reason. Raises `MismatchError` where the model was
    trained on another kind of features or another audio channel than the data has, `DataError`
    where every utterance is too long.
    """
    prepared = PreparedData.open(data)
    bundle = load_model(model, pick_device(runtime.device))
    check_search(settings, bundle.model.config.kind)
    require_same_filterbank(bundle, prepared)
    require_same_channel(bundle, prepared)
    chosen = prepared.split(split)
    what: dict[str, object] = {"split": split, "data": chosen.manifest_digest, **chosen.content}
    record = _record(bundle, settings, runtime, what)
    places, rejected = _searchable(chosen, bundle, settings)
    utterances = [chosen.utterance(place) for place in places]
    with claimed(out, record) as complete:
        if complete:
            return _finished(out)
        if rejected:
            write_jsonl(out / REJECTED, rejected)
        batches = _split_batches(bundle, chosen, places)
        _decode_all(out, [u.id for u in utterances], batches, bundle, settings, runtime)
        references = {u.id: u.text for u in utterances if u.text is not None}
        report = _finish(
            out,
            split,
            references,
            sum(u.duration for u in utterances),
            prepared.rejected_count(split) + len(rejected),
            bundle,
            settings,
            runtime,
        )
        mark_complete(out, record)
    return report


def decode_audio(
    model: Path, files: Sequence[Path], out: Path, settings: SearchSettings, runtime: Runtime
) -> ScoreReport:
    """Decode audio files into `out`; an utterance's id is its file's stem.

    Files that cannot be read, or are too long for the search, are skipped, counted, and listed
    in `rejected.jsonl` with the reason. Raises `InputNotFoundError` for a missing file,
    `DataError` where two files have one stem, and where none can be decoded.
    """
    for path in files:
        if not path.is_file():
            raise InputNotFoundError(path, "audio file", "Check the path")
    counts = Counter(path.stem for path in files)
    doubles = sorted(identifier for identifier, count in counts.items() if count > 1)
    if doubles:
        raise DataError(doubles[0], "the id of two audio files", "Rename one or decode it apart")
    bundle = load_model(model, pick_device(runtime.device))
    check_search(settings, bundle.model.config.kind)
    record = _record(bundle, settings, runtime, {"files": [str(p.resolve()) for p in files]})
    with claimed(out, record) as complete:
        if complete:
            return _finished(out)
        _decode_files(out, files, bundle, settings, runtime)
        rejected = _count_lines(out / REJECTED)
        seconds = sum(float(str(r["duration"])) for r in read_jsonl(out / "durations.jsonl"))
        report = _finish(out, "audio", {}, seconds, rejected, bundle, settings, runtime)
        mark_complete(out, record)
    return report


def decode_waveforms(
    bundle: ModelBundle, waveforms: Sequence[torch.Tensor], settings: SearchSettings
) -> list[list[Hypothesis]]:
    """Hypotheses of 16 kHz mono waveforms ((samples,), float32 in [-1, 1]) as one batch."""
    return recognise(bundle.model, waveform_batch(bundle, waveforms), settings)


def waveform_batch(bundle: ModelBundle, waveforms: Sequence[torch.Tensor]) -> Batch:
    """The model's own features of waveforms, normalised as it was trained."""
    filterbank = bundle.filterbank
    features = [bundle.cmvn.apply(filterbank.log_mel(waveform)) for waveform in waveforms]
    padded = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
    lengths = torch.tensor([len(rows) for rows in features])
    tokens, token_lengths = pad_tokens([()] * len(features))
    seconds = sum(len(waveform) for waveform in waveforms) / 16_000
    device = next(bundle.model.parameters()).device
    names = tuple(str(i) for i in range(len(features)))
    return Batch(names, padded, lengths, tokens, token_lengths, seconds).to(device)


Batches = Callable[[list[int]], Batch]
Rejection = dict[str, object]


def _split_batches(bundle: ModelBundle, split: PreparedSplit, places: Sequence[int]) -> Batches:
    """Batches of the utterances at `places`, by their number in that list."""
    device = next(bundle.model.parameters()).device
    return lambda indices: collate(split, bundle.cmvn, [places[i] for i in indices]).to(device)


def _rejection(identifier: str, audio: Path, error: KdpipeError) -> Rejection:
    return {"id": identifier, "audio_filepath": str(audio), "reason": str(error)}


def _searchable(
    split: PreparedSplit, bundle: ModelBundle, settings: SearchSettings
) -> tuple[list[int], list[Rejection]]:
    """Positions of the utterances that the search takes, and the others with the reason."""
    places: list[int] = []
    rejected: list[Rejection] = []
    problems: list[DataError] = []
    frame_counts = split.frame_counts.tolist()
    for place, (identifier, frames) in enumerate(zip(split.ids, frame_counts, strict=True)):
        try:
            _require_searchable(identifier, frames, bundle, settings)
        except DataError as error:
            problems.append(error)
            rejected.append(_rejection(identifier, split.utterance(place).audio, error))
        else:
            places.append(place)
    if problems and not places:
        raise problems[0]
    return places, rejected


def _require_searchable(
    name: str, frames: int, bundle: ModelBundle, settings: SearchSettings
) -> None:
    """Raise `DataError` for an utterance of more feature `frames` than the search takes.

    Before the encoder spends time and memory on it; greedy CTC takes any length.
    """
    if resolve_mode(settings.mode, bundle.model.config.kind) == "ctc":
        return
    try:
        check_lengths([subsampled_lengths(frames)])
    except UtteranceTooLongError as error:
        raise DataError(name, error.message, error.remedy) from error


def _record(
    bundle: ModelBundle, settings: SearchSettings, runtime: Runtime, what: dict[str, object]
) -> dict[str, object]:
    """What a decode folder belongs to."""
    return {
        "command": "decode",
        "model": weights_digest(bundle.path),
        "search": asdict(settings),
        "runtime": asdict(runtime),
        **what,
    }


def _decode_files(
    out: Path,
    files: Sequence[Path],
    bundle: ModelBundle,
    settings: SearchSettings,
    runtime: Runtime,
) -> None:
    """Read every file first, so that those of no use are known before decoding starts.

    Each is read again for its batch: hours of speech are gigabytes.
    """
    readable, durations, rejected = [], [], []
    problem: KdpipeError | None = None
    for path in files:
        try:
            samples = len(_read_samples(path, bundle, settings))
        except KdpipeError as error:
            problem = problem or error  # Of one alone: an error holds on to what was read.
            rejected.append(_rejection(path.stem, path, error))
            continue
        readable.append(path)
        durations.append({"id": path.stem, "duration": samples / 16_000})
    if problem and not readable:
        raise problem
    write_jsonl(out / REJECTED, rejected)
    write_jsonl(out / "durations.jsonl", durations)

    def batches(indices: list[int]) -> Batch:
        chosen = [_read_samples(readable[i], bundle, settings) for i in indices]
        return waveform_batch(bundle, chosen)

    _decode_all(out, [path.stem for path in readable], batches, bundle, settings, runtime)


def _read_samples(path: Path, bundle: ModelBundle, settings: SearchSettings) -> torch.Tensor:
    """The channel of a file that the model was trained on."""
    waveform = read_audio(path, channel=bundle.card.features.get("channel", "mix"))
    if not len(waveform):
        raise DataError(str(path), "no samples in it", "Give a file with speech in it")
    frames = bundle.filterbank.num_frames(len(waveform))
    _require_searchable(str(path), frames, bundle, settings)
    return waveform


def _decode_all(
    out: Path,
    ids: Sequence[str],
    batches: Batches,
    bundle: ModelBundle,
    settings: SearchSettings,
    runtime: Runtime,
) -> None:
    """Decode what `partial.jsonl` does not hold yet, one line an utterance."""
    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(runtime.threads)
    done = {str(record["id"]) for record in _partial_records(out)}
    todo = [i for i, identifier in enumerate(ids) if identifier not in done]
    try:
        with (
            (out / PARTIAL).open("a", encoding="utf-8") as sink,
            progress_bar(len(ids), f"decode {bundle.card.name}", done=len(done)) as bar,
        ):
            _start_gpu(bundle, batches, todo[:1], settings)
            for group in _chunks(todo, runtime.batch_size):
                for record in _decode_batch(group, ids, batches, bundle, settings):
                    sink.write(json.dumps(record, ensure_ascii=False) + "\n")
                sink.flush()
                bar.update(len(group))
    finally:
        torch.set_num_threads(threads)
    write_jsonl(out / PARTIAL, _partial_records(out))


def _start_gpu(
    bundle: ModelBundle, batches: Batches, first: list[int], settings: SearchSettings
) -> None:
    """CUDA loads its libraries at the first product, for seconds that no utterance took."""
    if first and next(bundle.model.parameters()).is_cuda:
        recognise(bundle.model, batches(first), settings)


def _chunks(items: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _decode_batch(
    group: list[int],
    ids: Sequence[str],
    batches: Batches,
    bundle: ModelBundle,
    settings: SearchSettings,
) -> list[dict[str, object]]:
    batch = batches(group)
    started = time.perf_counter()
    found = recognise(bundle.model, batch, settings)
    texts = [[read_tokens(bundle.tokenizer, h.tokens) for h in hypotheses] for hypotheses in found]
    seconds = (time.perf_counter() - started) / len(group)
    return [
        {
            "id": ids[index],
            "seconds": seconds,
            "nbest": [
                {"text": text, "score": hypothesis.score}
                for text, hypothesis in zip(lines, hypotheses, strict=True)
            ],
        }
        for index, lines, hypotheses in zip(group, texts, found, strict=True)
    ]


def _partial_records(out: Path) -> list[dict[str, object]]:
    """Whole lines of `partial.jsonl`; a line torn by a kill is decoded again."""
    path = out / PARTIAL
    if not path.is_file():
        return []
    # As bytes: a line may be torn inside a character.
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    return list(read_jsonl(path))


def _count_lines(path: Path) -> int:
    return sum(1 for _ in read_jsonl(path))


def _finished(out: Path) -> ScoreReport:
    """What a complete folder holds already; nothing of it is written again."""
    for name in ("hyp.jsonl", "score.json"):
        if not (out / name).is_file():
            raise DataError(str(out), f"complete, but {name} is gone", "Decode into another --out")
    return read_report(out / "score.json")


def _finish(
    out: Path,
    split: str,
    references: dict[str, str],
    audio_seconds: float,
    skipped: int,
    bundle: ModelBundle,
    settings: SearchSettings,
    runtime: Runtime,
) -> ScoreReport:
    """Write hyp.jsonl and score.json from the utterances' records."""
    records = _partial_records(out)
    lines, seconds = [], 0.0
    for record in records:
        nbest = record["nbest"]
        assert isinstance(nbest, list)
        seconds += float(str(record["seconds"]))
        line = {"id": record["id"], **nbest[0]}
        lines.append({**line, "nbest": nbest} if settings.nbest > 1 else line)
    write_jsonl(out / "hyp.jsonl", lines)
    hypotheses = {str(line["id"]): str(line["text"]) for line in lines}
    mode = resolve_mode(settings.mode, bundle.model.config.kind)
    report = score_report(
        references,
        {i: hypotheses[i] for i in references},
        split=split,
        mode=mode,
        beam=1 if mode == "ctc" else settings.beam,
        utterances=len(lines),
        skipped=skipped,
        audio_seconds=audio_seconds,
        decode_seconds=seconds,
        threads=runtime.threads,
        device=next(bundle.model.parameters()).device.type,
    )
    write_json(out / "score.json", report.to_json())
    return report
