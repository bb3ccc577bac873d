"""One tiny corpus and its prepared data, shared by the stage tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w
import torch

from kdpipe.checkpoint import Lineage, read_card
from kdpipe.config import to_table
from kdpipe.corpus.manifest import read_manifest
from kdpipe.features.prepared import PreparedData
from kdpipe.files import write_jsonl
from kdpipe.models.config import Kind
from kdpipe.stages.decode import Runtime, decode_split
from kdpipe.stages.prepare import PrepareSettings, prepare
from kdpipe.stages.recognise import SearchSettings
from kdpipe.stages.teacher_dump import DumpSettings, Shard, teacher_dump
from kdpipe.store import open_store
from kdpipe.testing import random_model, tiny_manifest


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared chord utterances: 24 to train on, 6 each for dev and test."""
    folder = tmp_path_factory.mktemp("tiny")
    sizes = {"train": 24, "dev": 6, "test": 6}
    manifests = {
        name: read_manifest(tiny_manifest(folder / name, size, seed))
        for seed, (name, size) in enumerate(sizes.items())
    }
    prepare(manifests, folder / "data", PrepareSettings(), workers=0)
    return folder / "data"


@pytest.fixture
def threads() -> Iterator[int]:
    """How many threads the process has, whatever a test does to it."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_data(tiny_folder: Path) -> PreparedData:
    return PreparedData.open(tiny_folder)


@pytest.fixture(scope="session")
def report_runs(tiny_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a report is made of, by the commands' own functions but for the training.

    A teacher and two students with random weights and logs written by hand, the teacher's store,
    and decode outputs of test and dev.
    """
    out = tmp_path_factory.mktemp("report")
    shutil.copytree(tiny_data.folder, out / "data")
    kinds: dict[str, Kind] = {"teacher": "ar", "plain": "mask-ctc", "student": "mask-ctc"}
    for seed, (name, kind) in enumerate(kinds.items()):
        random_model(tiny_data, out / name, kind, seed)
        write_jsonl(out / name / "train.jsonl", made_up_log(kind, distilled=name == "student"))
    dump = DumpSettings(nbest=2, beam=2, batch_frames=2000)
    teacher_dump(out / "data", "train", out / "teacher", out / "train.zarr", dump, Shard(), "cpu")
    name_teacher(out / "student", str(open_store(out / "train.zarr").digest))
    greedy = SearchSettings(mode="ctc")
    for model in kinds:
        decodes = {
            f"{model}-test": ("test", SearchSettings(beam=2)),
            f"{model}-test-ctc": ("test", greedy),
            f"{model}-dev": ("dev", greedy),
        }
        for folder, (split, search) in decodes.items():
            decode_split(
                out / model, out / "data", split, out / "decode" / folder, search, Runtime("cpu")
            )
    return out


def made_up_log(kind: str, distilled: bool) -> list[dict[str, object]]:
    """Epoch records as training writes them."""
    terms = ["ctc", "total", "attention" if kind == "ar" else "mlm"]
    terms += ["encoder_frame", "decoder_frame"] * distilled
    return [
        {"type": "epoch", "epoch": epoch, "step": 5 * epoch, "learning_rate": 1e-3,
         **dict.fromkeys(terms, 4.0 / epoch), "dev_cer": 1.0 / epoch, "dev_wer": 1.0}
        for epoch in range(1, 7)
    ]  # fmt: skip


def name_teacher(model: Path, store_digest: str) -> None:
    """Write into a model's card that it learned from a store."""
    lineage = Lineage(store_digest, "teacher", "0" * 64)
    card = replace(read_card(model), lineage=(lineage,))
    (model / "model.toml").write_text(tomli_w.dumps(to_table(card)), encoding="utf-8")
