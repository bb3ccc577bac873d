"""What teacher-dump says of a store that is there already."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdpipe.errors import OutputConflictError
from kdpipe.features.prepared import PreparedData
from kdpipe.stages.teacher_dump import DumpSettings, Shard, teacher_dump
from kdpipe.store import open_store
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
