"""What teacher-dump says of a store that is there already, or that others are at work on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from kdpipe.errors import BusyOutputError, OutputConflictError
from kdpipe.features.prepared import PreparedData
from kdpipe.stages import teacher_dump as stage
from kdpipe.stages.teacher_dump import DumpSettings, Shard, teacher_dump
from kdpipe.store import finish, open_store
from kdpipe.store.journal import working_lock
from kdpipe.store.paths import working_folder
from kdpipe.testing import random_model


@pytest.mark.parametrize("parts", [1, 2], ids=["complete", "begun"])
def test_a_licence_that_would_be_lost_is_refused(
    tiny_data: PreparedData, tmp_path: Path, parts: int
) -> None:
    teacher, out = random_model(tiny_data, tmp_path / "teacher", "ar"), tmp_path / "s.zarr"

    def dump(licence: str, part: int = 0) -> bool:
        # Small batches: every part has some.
        settings, shard = DumpSettings(beam=1, nbest=1, batch_frames=300), Shard(part, parts)
        return teacher_dump(
            tiny_data.folder, "dev", teacher, out, settings, shard, "cpu", licence=licence
        )

    assert dump("CC BY 4.0") is (parts == 1)
    for licence in ("CC0", "CC BY 4.0 "):
        with pytest.raises(OutputConflictError, match=f"licence: 'CC BY 4.0' -> '{licence}'"):
            dump(licence)
    # The same command goes on, and one that says nothing of it asks for nothing else.
    dump("CC BY 4.0")
    assert dump("", parts - 1)
    assert open_store(out).header.licence == "CC BY 4.0"


def test_a_licence_for_a_store_without_one_is_refused(
    tiny_data: PreparedData, tmp_path: Path
) -> None:
    teacher, out = random_model(tiny_data, tmp_path / "teacher", "ar"), tmp_path / "s.zarr"
    where, settings = (tiny_data.folder, "dev", teacher, out), DumpSettings(beam=1, nbest=1)
    assert teacher_dump(*where, settings, Shard(), "cpu")
    with pytest.raises(OutputConflictError, match="written into its card"):
        teacher_dump(*where, settings, Shard(), "cpu", licence="CC0")


@pytest.mark.parametrize("name", ["s.zarr", "s.h5"])
@pytest.mark.parametrize("finishes", [False, True], ids=["leaves", "finishes"])
def test_a_shard_waits_for_another_that_holds_the_store(
    tiny_data: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    finishes: bool,
) -> None:
    teacher, out = random_model(tiny_data, tmp_path / "teacher", "ar"), tmp_path / name
    settings = DumpSettings(beam=1, nbest=1, batch_frames=300)

    def dump(index: int, count: int = 2) -> bool:
        where = (tiny_data.folder, "dev", teacher, out)
        return teacher_dump(*where, settings, Shard(index, count), "cpu")

    with monkeypatch.context() as patch:
        patch.setattr(stage, "_finish", lambda *_: False)
        assert [dump(0), dump(1)] == [False, False]
    release = _held(out, then=(lambda: _finish_unless_busy(out)) if finishes else None)
    with pytest.raises(BusyOutputError):
        dump(0, 1)
    threading.Timer(0.5, release.set).start()
    assert dump(0)
    assert set(open_store(out).ids) == set(tiny_data.split("dev").ids)
    left = {path.name for path in tmp_path.iterdir()} - {"teacher"}
    assert left == {name}
    assert not (out / "journal").exists()


def _finish_unless_busy(out: Path) -> None:
    """The waiting dump may be the first to go on; then it is the one to finish."""
    with suppress(BusyOutputError):
        finish(out)


def _held(out: Path, then: Callable[[], object] | None) -> threading.Event:
    """Hold the store as whoever finishes it does, until the event; `then` comes after."""
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with working_lock(working_folder(out), "writers.lock", shared=False, wait=False):
            held.set()
            release.wait(300)
        if then is not None:
            then()

    threading.Thread(target=hold, daemon=True).start()
    assert held.wait(300)
    time.sleep(0.05)
    return release
