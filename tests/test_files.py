"""Files on file systems that cannot do everything, and JSON that is none."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kdpipe.errors import DataError
from kdpipe.files import atomic_write_text, read_json, sync_folder


def refuse_syncing(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no folder could be synced."""
    real = os.fsync

    def fsync(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").is_dir():
            raise OSError(code, os.strerror(code))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_a_file_system_that_syncs_no_folders_is_written(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_syncing(code, monkeypatch)
    atomic_write_text(tmp_path / "a.txt", "whole")
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_a_disk_that_fails_to_sync_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_syncing(errno.EIO, monkeypatch)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        sync_folder(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000, b"9" * 5000])
def test_what_is_no_json_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json: not JSON"):
        read_json(tmp_path / "a.json")
