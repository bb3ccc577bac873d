"""report: one self-contained page about the runs it is given."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdpipe.checkpoint import ModelCard, read_card, weights_digest
from kdpipe.errors import DataError, InputNotFoundError
from kdpipe.features.prepared import PreparedData
from kdpipe.files import atomic_write_text, read_json, read_jsonl
from kdpipe.models.recognition import RecognitionModel, count_parameters
from kdpipe.scoring import ScoreReport, align_pairs, read_report, uses_spaces
from kdpipe.scoring.errors import Unit
from kdpipe.scoring.page import (
    DataSummary,
    DecodeRun,
    Material,
    ModelRun,
    StoreRun,
    page_sections,
    render_page,
)
from kdpipe.stages.hf_card import is_hf_teacher
from kdpipe.stages.report_posteriors import PosteriorSettings, Splits, posterior_material
from kdpipe.stages.report_runs import FoundRun, find_runs
from kdpipe.store import open_store, store_info

__all__ = ["Report", "gather", "write_report"]

SAMPLED_RECORDS = 500
WEIGHTS = "weights.safetensors"
Json = Mapping[str, Any]


@dataclass(frozen=True)
class Report:
    """What was written: its size, the parts that are on the page and those that are not."""

    path: Path
    bytes: int
    shown: tuple[str, ...]
    missing: tuple[str, ...]


def write_report(
    runs: Sequence[Path], out: Path, data: Sequence[Path], settings: PosteriorSettings
) -> Report:
    """Write the page about `runs` to `out`, whole or not at all.

    `data`: prepared data to look references and features up in, beside those among the runs.
    Raises `InputNotFoundError` for a path that holds no run, `DataError` for a damaged one.
    """
    material = gather(runs, data, settings)
    sections = page_sections(material)
    content = render_page(material)
    atomic_write_text(out, content)
    return Report(
        path=out,
        bytes=len(content.encode("utf-8")),
        shown=tuple(section.name for section in sections if section.body is not None),
        missing=tuple(section.name for section in sections if section.body is None),
    )


def gather(runs: Sequence[Path], data: Sequence[Path], settings: PosteriorSettings) -> Material:
    """Read everything that the page shows; run the students on a few stored utterances."""
    found = find_runs([*runs, *data])
    prepared = [(run, PreparedData.open(run.path)) for run in _of(found, "data")]
    splits: dict[str, list[tuple[PreparedData, str]]] = {}
    homes: dict[str, str] = {}
    for run, opened in prepared:
        for name, summary in opened.settings["splits"].items():
            splits.setdefault(summary["manifest_digest"], []).append((opened, name))
            homes.setdefault(summary["manifest_digest"], run.name)
    models, digests = _models(_of(found, "model"))
    references = _References(splits)
    decodes, strangers = _decodes(_of(found, "decode"), digests, references, homes)
    stores = _of(found, "store")
    students = {run.name: run.path for run in _of(found, "model") if _is_student(run.path)}
    agreements, pictures, notes = posterior_material(
        {run.name: run.path for run in stores}, students, splits, settings
    )
    return Material(
        title=_title(runs),
        models=(*models, *strangers),
        decodes=tuple(decodes),
        stores=tuple(_store(run) for run in stores),
        data=tuple(_data(run, opened) for run, opened in prepared),
        agreements=agreements,
        pictures=pictures,
        notes=notes,
    )


def _of(found: Sequence[FoundRun], kind: str) -> list[FoundRun]:
    return [run for run in found if run.kind == kind]


def _title(runs: Sequence[Path]) -> str:
    """The run's name; of several, their common folder's."""
    names = [path.resolve() for path in runs]
    if len(names) == 1:
        return names[0].name
    shared = [parent for parent in names[0].parents if all(parent in n.parents for n in names)]
    return shared[0].name or "runs"


def _models(runs: Sequence[FoundRun]) -> tuple[list[ModelRun], dict[str, str]]:
    """Models trained here, and the name of each by the digest of its weights."""
    models, digests = [], {}
    for run in runs:
        if is_hf_teacher(run.path):
            continue
        card = read_card(run.path) if (run.path / "model.toml").is_file() else None
        models.append(_model(run, card))
        if (run.path / WEIGHTS).is_file():
            digests[weights_digest(run.path)] = run.name
    return models, digests


def _model(run: FoundRun, card: ModelCard | None) -> ModelRun:
    log = run.path / "train.jsonl"
    epochs = tuple(r for r in _whole_records(log) if r.get("type") == "epoch")
    if card is None:
        return ModelRun(run.name, epochs=epochs)
    with torch.device("meta"):
        parameters = count_parameters(RecognitionModel(card.sizes))
    return ModelRun(
        run.name,
        kind=card.sizes.kind,
        parameters=parameters,
        teachers=tuple(lineage.teacher_name for lineage in card.lineage),
        epochs=epochs,
        stage_starts=_stage_starts(card) if card.lineage else (),
    )


def _stage_starts(card: ModelCard) -> tuple[int, ...]:
    """Epochs at which the second and later stages of the student's schedule begin."""
    stages = card.recipe.get("student", {}).get("stages", [])
    lengths = [int(stage.get("epochs", 0)) for stage in stages]
    return tuple(1 + sum(lengths[:i]) for i in range(1, len(lengths)))


def _whole_records(path: Path) -> list[dict[str, Any]]:
    """Records of a log that may still be written: a line without its end is not read yet."""
    if not path.is_file():
        return []
    content = path.read_text(encoding="utf-8", errors="replace")
    lines = content[: content.rfind("\n") + 1].splitlines()
    try:
        return [json.loads(line) for line in lines if line.strip()]
    except json.JSONDecodeError as error:
        raise DataError(str(path), f"not JSON lines ({error})", "Restore the file") from error


def _is_student(path: Path) -> bool:
    finished = (path / "model.toml").is_file() and (path / WEIGHTS).is_file()
    return finished and read_card(path).sizes.kind == "mask-ctc"


class _References:
    """Texts of splits by the digest of their manifest, each read once."""

    def __init__(self, splits: Splits) -> None:
        self._splits = splits
        self._texts: dict[str, dict[str, str]] = {}

    def of(self, digest: str) -> dict[str, str]:
        """Id to text of the split with this digest; nothing where it is not at hand."""
        if digest not in self._splits:
            return {}
        if digest not in self._texts:
            data, name = self._splits[digest][0]
            entries = data.split(name).utterances
            self._texts[digest] = {e.id: e.text for e in entries if e.text is not None}
        return self._texts[digest]


def _decodes(
    runs: Sequence[FoundRun],
    digests: Mapping[str, str],
    references: _References,
    homes: Mapping[str, str],
) -> tuple[list[DecodeRun], list[ModelRun]]:
    """Decode outputs, and the models that are known by nothing else."""
    decodes: list[DecodeRun] = []
    sources: list[str] = []
    strangers: dict[str, ModelRun] = {}
    for run in runs:
        report = read_report(run.path / "score.json")
        settings = _run_settings(run.path)
        digest = str(settings.get("model", ""))
        name = digests.get(digest) or (f"model {digest[:8]}" if digest else run.name)
        if digest not in digests:
            kind = {"ar": "ar", "mask-ctc": "mask-ctc"}.get(report.mode, "")
            known = strangers.get(name)
            kind = (known.kind if known else "") or kind
            strangers[name] = ModelRun(name, kind, known=False)
        sources.append(str(settings.get("data", "")))
        decodes.append(_decode(run, name, report, settings, references.of(sources[-1])))
    return _told_apart(decodes, sources, homes), list(strangers.values())


def _told_apart(
    decodes: Sequence[DecodeRun], sources: Sequence[str], homes: Mapping[str, str]
) -> list[DecodeRun]:
    """Splits of one name but of other speech get the name of their data as well.

    By what was spoken: the same speech with other features is the same split.
    """
    kinds: dict[str, dict[tuple[int, int], str]] = {}
    for decode, source in zip(decodes, sources, strict=True):
        home = homes.get(source) or source[:8] or decode.name
        kinds.setdefault(decode.report.split, {}).setdefault(_spoken(decode.report), home)
    return [
        replace(d, report=replace(d.report, split=f"{d.report.split} ({found[_spoken(d.report)]})"))
        if len(found := kinds[d.report.split]) > 1
        else d
        for d in decodes
    ]


def _spoken(report: ScoreReport) -> tuple[int, int]:
    """Utterances of a split, also those that could not be decoded, and their words."""
    return report.utterances + report.skipped, report.wer.reference if report.wer else 0


def _run_settings(path: Path) -> Json:
    """The settings in a run record; none where there is no record."""
    file = path / "run.json"
    record = read_json(file) if file.is_file() else {}
    settings = record.get("settings", {}) if isinstance(record, Mapping) else None
    if not isinstance(settings, Mapping):
        raise DataError(str(file), "not a run record", "Restore the file, or decode again")
    return settings


def _decode(
    run: FoundRun, model: str, report: ScoreReport, settings: Json, texts: Mapping[str, str]
) -> DecodeRun:
    search = dict(settings.get("search", {}))
    heard = _hypotheses(run.path)
    pairs = {name: (text, heard[name]) for name, text in texts.items() if name in heard}
    # Without references, what was recognised tells whether the script has words.
    written = [text for text, _ in pairs.values()] or list(heard.values())
    unit: Unit = "word" if uses_spaces(written) else "char"
    if not pairs:
        return DecodeRun(run.name, model, report, search, unit)
    errors = align_pairs(
        {name: pair[0] for name, pair in pairs.items()},
        {name: pair[1] for name, pair in pairs.items()},
        unit,
        spaces=False,
    )
    return DecodeRun(run.name, model, report, search, unit, errors, pairs)


def _hypotheses(path: Path) -> dict[str, str]:
    """Id to text of a decode output."""
    file = path / "hyp.jsonl"
    if not file.is_file():
        raise InputNotFoundError(file, "hypotheses", "Restore the file, or decode again")
    try:
        return {str(line["id"]): str(line["text"]) for line in read_jsonl(file)}
    except KeyError as error:
        raise DataError(str(file), f"no {error}", "Decode again") from error


def _store(run: FoundRun) -> StoreRun:
    info = store_info(run.path)
    store = open_store(run.path, allow_partial=True)
    ids = store.ids
    step = max(1, len(ids) // SAMPLED_RECORDS)
    sample = ids[::step][:SAMPLED_RECORDS]
    parts = store.read_sections(sample) if sample else {}
    sizes = {name: int(np.asarray(content).nbytes) for name, content in parts.items()}
    return StoreRun(run.name, info, sizes, len(sample))


def _data(run: FoundRun, data: PreparedData) -> DataSummary:
    tokenizer = data.settings["tokenizer"]
    kind = {"char": "characters", "bpe": "BPE pieces"}.get(tokenizer["kind"], tokenizer["kind"])
    splits = {
        name: (int(summary["utterances"]), float(summary["seconds"]))
        for name, summary in data.settings["splits"].items()
    }
    return DataSummary(run.name, f"{tokenizer['vocab_size']} classes, {kind}", splits)
