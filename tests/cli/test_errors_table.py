"""Every bad input to every command: an exit code, two lines that say what and how to mend it.

After each, everything on the disk is as it was before. The table is in error_cases.py.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tests.cli.broken import MAKERS
from tests.cli.error_cases import CASES, FULL_DISK, Case, spelled

from kdpipe_cli.main import COMMANDS, run


class Places(dict[str, Path]):
    """The world's paths, and those of broken.py, made when a command names them."""

    def __init__(self, world: Mapping[str, Path], folder: Path) -> None:
        super().__init__(world, out=folder / "out")
        self.world, self.folder = world, folder

    def __missing__(self, name: str) -> Path:
        self[name] = MAKERS[name](self.world, self.folder)
        return self[name]


Snapshot = dict[str, tuple[int, int]]


def snapshot(folder: Path) -> Snapshot:
    """Size and time of every file, and every folder, below one."""
    return {
        str(path.relative_to(folder)): (status.st_size, status.st_mtime_ns)
        if path.is_file()
        else (0, 0)
        for path in sorted(folder.rglob("*"))
        for status in (path.lstat(),)
    }


@pytest.fixture(scope="module")
def untouched(world: Mapping[str, Path]) -> Snapshot:
    return snapshot(world["folder"])


def call(command: str, places: Places) -> int:
    """Run a command line in this process; its exit code."""
    arguments = [part.format_map(places) for part in shlex.split(spelled(command))]
    try:
        return run(arguments)
    except SystemExit as stopped:
        return int(str(stopped.code))


@pytest.mark.parametrize("wrong", CASES, ids=lambda c: c.id)
def test_what_a_user_gets_wrong(
    wrong: Case,
    world: Mapping[str, Path],
    untouched: Snapshot,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    places = Places(world, tmp_path)
    for name in re.findall(r"{(\w+)}", wrong.command):
        places[name]
    before = snapshot(tmp_path)
    code = call(wrong.command, places)
    printed = capsys.readouterr()
    assert code == wrong.code, printed.err
    for words in wrong.says:
        assert words.format_map(places) in printed.err + printed.out
    lines = printed.err.strip().splitlines()
    assert len(lines) <= 2
    assert "Traceback" not in printed.err
    kept = {name for name in snapshot(tmp_path) if name.split("/")[0] in wrong.keeps}
    assert {k: v for k, v in snapshot(tmp_path).items() if k not in kept} == before
    assert bool(kept) == bool(wrong.keeps)
    assert snapshot(world["folder"]) == untouched


def test_the_table_is_long_enough_and_names_every_command() -> None:
    assert len({wrong.id for wrong in CASES}) == len(CASES) >= 80
    assert {spelled(wrong.command).split()[0] for wrong in CASES} >= set(COMMANDS)


@contextmanager
def full_disk(call_name: str) -> Iterator[None]:
    """`os.CALL` finds no space: a file system cannot be filled from inside a test."""

    def refuse(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, call_name, refuse)
        yield


@pytest.mark.parametrize(("command", "refused"), FULL_DISK)
def test_a_full_disk(
    command: str,
    refused: str,
    world: Mapping[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with full_disk(refused):
        assert call(command, Places(world, tmp_path)) == 1
    printed = capsys.readouterr().err
    assert "No space left on device" in printed
    assert "run the same command again" in printed
    assert len(printed.strip().splitlines()) <= 2
    assert not [path for path in tmp_path.rglob("*.tmp") if path.is_file()]
    assert not any((tmp_path / f"out{suffix}").is_file() for suffix in (".h5", ".md", ".html"))


def test_an_output_in_use(
    world: Mapping[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert call("<train> {data}", Places(world, tmp_path)) == 1
    assert "is being written by another process" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "extra", "command"),
    [
        ("tensorboardX", "tensorboard", "<train> {data} --tensorboard"),
        ("espeakng_loader", "demo", "demo --quiet --out {out}"),
        ("s3fs", "s3", "store info s3://bucket/s.zarr"),
    ],
)
def test_an_extra_that_is_not_installed(
    module: str,
    extra: str,
    command: str,
    world: Mapping[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert call(command, Places(world, tmp_path)) == 1
    printed = capsys.readouterr().err
    assert f"'.[{extra}]'" in printed
    assert len(printed.strip().splitlines()) == 2
    assert snapshot(tmp_path) == {}
