"""What the tables of errors and of shell habits work on: every artefact, tiny, made once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from kdpipe.corpus.manifest import read_manifest
from kdpipe.stages.decode import Runtime, decode_split
from kdpipe.stages.prepare import PrepareSettings, prepare
from kdpipe.stages.recognise import SearchSettings
from kdpipe.stages.teacher_dump import DumpSettings, Shard, teacher_dump
from kdpipe.stages.train_teacher import train_teacher
from kdpipe.store import StoreWriter, open_store
from kdpipe.store.convert import convert_store
from kdpipe.testing import random_model, tiny_manifest, tiny_recipe

SIZES = {"train": 8, "dev": 3, "test": 3}
DUMP = DumpSettings(beam=2, nbest=2)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Paths by name; nobody may change them."""
    folder = tmp_path_factory.mktemp("world")
    manifests = {
        name: tiny_manifest(folder / name, size, seed)
        for seed, (name, size) in enumerate(SIZES.items())
    }
    places = {
        "folder": folder,
        **{f"{name}_manifest": manifest for name, manifest in manifests.items()},
        "audio": next(manifests["test"].parent.glob("*.wav")),
        **_prepared(folder, manifests),
    }
    return {**places, **_models(folder, places["data"]), **_stores(folder, places["data"])}


def _prepared(folder: Path, manifests: Mapping[str, Path]) -> dict[str, Path]:
    """Data as trained on, and variants that do not fit it."""
    splits = {name: read_manifest(manifest) for name, manifest in manifests.items()}
    variants = {
        "data": PrepareSettings(),
        "other_tokens": PrepareSettings(text_case="lower"),
        "other_features": PrepareSettings(channel="first"),
    }
    for name, settings in variants.items():
        prepare(splits, folder / name, settings, workers=0)
    prepare({"train": splits["train"]}, folder / "no_dev", PrepareSettings(), workers=0)
    return {name: folder / name for name in (*variants, "no_dev")}


def _models(folder: Path, data: Path) -> dict[str, Path]:
    from kdpipe.features.prepared import PreparedData

    recipe = tiny_recipe("teacher.training.epochs=1")
    train_teacher(data, recipe, folder / "teacher", 0, "cpu")
    random_model(PreparedData.open(data), folder / "student", "mask-ctc")
    random_model(PreparedData.open(data), folder / "other_teacher", "ar", seed=1)
    search = SearchSettings(mode="ctc")
    runtime = Runtime(device="cpu")
    decode_split(folder / "student", data, "test", folder / "decoded", search, runtime)
    return {n: folder / n for n in ("teacher", "student", "other_teacher", "decoded")}


def _stores(folder: Path, data: Path) -> dict[str, Path]:
    places = {
        "store": folder / "train.zarr",
        "test_store": folder / "test.zarr",
        "store_h5": folder / "train.h5",
        "partial": folder / "partial.zarr",
    }
    for split, name in (("train", "store"), ("test", "test_store")):
        teacher_dump(data, split, folder / "teacher", places[name], DUMP, Shard(), "cpu")
    convert_store(places["store"], places["store_h5"])
    store = open_store(places["store"])
    with StoreWriter(places["partial"], store.header) as writer:
        for utterance in store.ids[:3]:
            writer.add(store[utterance])
    return places
