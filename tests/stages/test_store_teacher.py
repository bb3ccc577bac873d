"""A store against its teacher: recomputed, compared, and mended after damage."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kdpipe.checkpoint import load_model
from kdpipe.errors import MismatchError, StoreFormatError
from kdpipe.features.prepared import PreparedData
from kdpipe.stages.store_teacher import dump_settings, recompute_sample, repair_store
from kdpipe.stages.teacher_dump import DumpSettings, Shard, teacher_dump
from kdpipe.store import open_store
from kdpipe.store.check import verify_store
from kdpipe.store.convert import convert_store
from kdpipe.store.merge import average_stores, join_stores
from kdpipe.store.repair import drop_utterances
from kdpipe.testing import random_model
from kdpipe_cli.main import main

SETTINGS = DumpSettings(nbest=3, beam=3, batch_frames=2000)


@pytest.fixture(scope="module")
def teacher(tiny_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tiny_data, tmp_path_factory.mktemp("models") / "teacher", "ar")


@pytest.fixture
def store(tiny_data: PreparedData, teacher: Path, tmp_path: Path) -> Path:
    out = tmp_path / "train.zarr"
    teacher_dump(tiny_data.folder, "train", teacher, out, SETTINGS, Shard(), "cpu")
    return out


def flip_a_record_byte(store: Path) -> None:
    shard = sorted((store / "records" / "c").iterdir())[0]
    content = bytearray(shard.read_bytes())
    content[len(open_store(store)) * 3] ^= 0x40
    shard.write_bytes(content)


def test_the_teacher_agrees_with_its_store(
    tiny_data: PreparedData, teacher: Path, store: Path
) -> None:
    found = recompute_sample(store, tiny_data.folder, teacher, 5, 0, "cpu")
    assert found.utterances == 5
    assert found.best_agrees == 1.0
    assert 0.0 <= found.frame_kl < 0.01
    assert found.within(0.01)
    assert not found.within(-1.0)
    header = open_store(store).header
    assert header.fidelity is not None
    assert found.frame_kl == pytest.approx(header.fidelity.frame_kl, abs=5e-3)


@pytest.mark.parametrize(
    "decode",
    [
        {"beam": "wide", "batch_frames": 2000},
        {"beam": [], "batch_frames": 2000},
        {"beam": 10**9, "batch_frames": 2000},
        {"beam": 3},
        {"beam": 3, "batch_frames": 0},
        {"beam": 3, "batch_frames": float("inf")},
        {"beam": 3, "batch_frames": 2000, "ctc_weight": 2.0},
        {"beam": 3, "batch_frames": 2000, "text_case": "Title"},
        {"beam": 3, "batch_frames": 2000, "punctuation": ["strip"]},
    ],
)
def test_a_header_that_says_no_search_is_refused(store: Path, decode: dict[str, object]) -> None:
    header = replace(open_store(store).header, decode=decode)
    with pytest.raises(StoreFormatError, match="how it was decoded"):
        dump_settings(header)


def test_a_header_says_how_it_was_dumped(store: Path) -> None:
    assert dump_settings(open_store(store).header) == SETTINGS


def test_another_teacher_is_refused(tiny_data: PreparedData, store: Path, tmp_path: Path) -> None:
    other = random_model(tiny_data, tmp_path / "other", "ar", seed=3)
    with pytest.raises(MismatchError, match="teacher's weights"):
        recompute_sample(store, tiny_data.folder, other, 2, 0, "cpu")


def test_repair_restores_the_very_same_content(
    tiny_data: PreparedData, teacher: Path, store: Path
) -> None:
    before = open_store(store)
    flip_a_record_byte(store)
    damaged = verify_store(store).damaged_ids
    assert len(damaged) == 1
    assert repair_store(store, tiny_data.folder, teacher, "cpu") == list(damaged)
    assert verify_store(store).sound
    assert open_store(store).digest == before.digest
    assert open_store(store).header.fidelity == before.header.fidelity


def cut_the_shard(store: Path) -> None:
    shard = store / "records/c/0"
    shard.write_bytes(shard.read_bytes()[:1000])


def spoil_the_root(store: Path) -> None:
    root = store / "zarr.json"
    root.write_bytes(root.read_bytes().replace(b"kdpipe_version", b"kdpipe-version"))


def spoil_the_user_block(store: Path) -> None:
    store.write_bytes(store.read_bytes().replace(b"kdpipe_version", b"kdpipe-version", 1))


@pytest.mark.parametrize(
    ("suffix", "spoil"),
    [(".zarr", cut_the_shard), (".zarr", spoil_the_root), (".h5", spoil_the_user_block)],
)
def test_repair_mends_what_cannot_be_opened(
    tiny_data: PreparedData,
    teacher: Path,
    store: Path,
    suffix: str,
    spoil: Callable[[Path], None],
) -> None:
    digest = open_store(store).digest
    damaged = store.with_suffix(suffix)
    if damaged != store:
        convert_store(store, damaged)
    spoil(damaged)
    assert not verify_store(damaged).sound
    repair_store(damaged, tiny_data.folder, teacher, "cpu")
    assert verify_store(damaged).sound
    assert open_store(damaged).digest == digest


@pytest.mark.parametrize("moment", ["swap", "dump"])
def test_a_repair_that_was_broken_off_goes_on(
    tiny_data: PreparedData,
    teacher: Path,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    digest = open_store(store).digest
    shutil.copytree(store, store.with_name("mended.zarr"))
    drop_utterances(store.with_name("mended.zarr"), [next(iter(open_store(store)))])
    if moment == "swap":
        store.rename(store.with_name(".train.zarr.damaged"))
        store.with_name("mended.zarr").rename(store.with_name(".train.zarr.repair.zarr"))
    else:
        shutil.rmtree(store)
        store.with_name("mended.zarr").rename(store)
    where = ["--teacher", str(teacher), "--data", str(tiny_data.folder)]
    command = ["kdpipe", "store", "verify", "--repair", str(store), *where]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    assert open_store(store).digest == digest


def test_the_command_repairs_and_recomputes(
    tiny_data: PreparedData,
    teacher: Path,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flip_a_record_byte(store)
    where = ["--teacher", str(teacher), "--data", str(tiny_data.folder)]

    def verify(*options: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["kdpipe", "store", "verify", str(store), *options])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code, capsys.readouterr().out

    assert verify()[0] == 1
    code, printed = verify("--repair", "--recompute", "3", *where)
    assert code == 0
    assert "dumped again: 1 utterances" in printed
    assert "agrees" in printed
    assert verify("--recompute", "3", "--threshold", "0", *where)[0] == 1
    assert verify("--repair")[0] == 2


def test_an_average_is_mended_through_its_sources(
    tiny_data: PreparedData, teacher: Path, store: Path, tmp_path: Path
) -> None:
    other = random_model(tiny_data, tmp_path / "other", "ar", seed=3)
    teacher_dump(tiny_data.folder, "train", other, tmp_path / "o.zarr", SETTINGS, Shard(), "cpu")
    mean = tmp_path / "mean.zarr"
    average_stores([store, tmp_path / "o.zarr"], mean)
    with pytest.raises(MismatchError, match="average of teacher, other") as refused:
        recompute_sample(mean, tiny_data.folder, teacher, 2, 0, "cpu")
    assert "merge" in refused.value.remedy
    flip_a_record_byte(mean)
    with pytest.raises(MismatchError, match="average of teacher, other"):
        repair_store(mean, tiny_data.folder, teacher, "cpu")
    assert len(verify_store(mean).damaged_ids) == 1


def test_a_joined_store_is_mended_through_its_sources(
    tiny_data: PreparedData, teacher: Path, store: Path, tmp_path: Path
) -> None:
    teacher_dump(tiny_data.folder, "dev", teacher, tmp_path / "d.zarr", SETTINGS, Shard(), "cpu")
    joined = tmp_path / "joined.zarr"
    join_stores([store, tmp_path / "d.zarr"], joined)
    flip_a_record_byte(joined)
    for work in (
        lambda: recompute_sample(joined, tiny_data.folder, teacher, 2, 0, "cpu"),
        lambda: repair_store(joined, tiny_data.folder, teacher, "cpu"),
    ):
        with pytest.raises(MismatchError, match=r"train\+dev") as refused:
            work()
        assert "joined from" in refused.value.remedy
    assert len(verify_store(joined).damaged_ids) == 1


def test_a_random_model_is_a_model(teacher: Path) -> None:
    assert load_model(teacher).model.config.kind == "ar"
