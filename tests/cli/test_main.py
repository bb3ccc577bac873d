"""The command line as a user meets it: help at once, known errors in two lines, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.store.contract import make_header, write_targets

from kdpipe.store import finish
from kdpipe_cli.failures import explain
from kdpipe_cli.main import COMMANDS, cli, main, run

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_every_command_has_help_with_an_example() -> None:
    import click

    for name in COMMANDS:
        parent = click.Context(cli, info_name="kdpipe", **cli.context_settings)
        command = cli.get_command(parent, name)
        assert command is not None
        text = command.get_help(click.Context(command, info_name=name, parent=parent))
        if isinstance(command, click.Group):
            continue
        assert "Example" in text, name


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; from kdpipe_cli.main import cli; cli.main(['--help'], standalone_mode=False);"
        "assert 'torch' not in sys.modules, 'torch'; assert 'zarr' not in sys.modules, 'zarr'"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert result.returncode == 0, result.stderr
    for name in COMMANDS:
        assert name in result.stdout


def test_reading_a_store_does_not_import_torch(tmp_path: Path) -> None:
    write_targets(tmp_path / "s.zarr", make_header(), range(3))
    finish(tmp_path / "s.zarr")
    code = (
        f"import sys, kdpipe; s = kdpipe.open_store({str(tmp_path / 's.zarr')!r})\n"
        "assert len(s[s.ids[0]].nbest) and len(s.read_batch(list(s)).references)\n"
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "Usage"),
        (("fly",), 2, "No such command"),
        (("decode", "--model", "m", "--out", "o"), 2, "Give either --data or audio files"),
        (
            (
                "train-student", "--data", "d", "--recipe", "an4", "--out", "o",
                "--targets", "s", "--online-teacher", "t",
            ),
            2,
            "Give either --targets or --online-teacher",
        ),
        (
            (
                "train-student", "--data", "d", "--recipe", "an4", "--out", "o",
                "--targets", "s", "--targets", "t",
            ),
            2,
            "kdpipe store merge",
        ),
        (("decode", "--model", "m", "--out", "o", "--beam", "0", "a.wav"), 2, "--beam"),
        (("decode", "--model", "none", "--out", "OUT", "a.wav"), 1, "no audio file"),
        (("train-teacher", "--data", "none", "--recipe", "an4", "--out", "OUT"), 1, "prepared"),
        (("train-teacher", "--data", "none", "--recipe", "xx", "--out", "OUT"), 1, "an4"),
        (
            ("train-student", "--data", "d", "--recipe", "an4", "--out", "o", "--set", "nmae=3"),
            1,
            "Did you mean name",
        ),
        (("teacher-dump", "--data", "d", "--teacher", "t", "--out", "s.txt", "--shard", "3"), 2,
         "I/N"),
        (("prepare", "--out", "o"), 2, "--train"),
    ],
)  # fmt: skip
def test_what_a_user_gets_wrong(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    given = [str(tmp_path / "out") if part == "OUT" else part for part in arguments]
    monkeypatch.setattr(sys, "argv", ["kdpipe", *given])
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capsys.readouterr()
    assert stopped.value.code == code, printed.err
    assert words in printed.err + printed.out
    assert not (tmp_path / "out").exists()
    if code == 1:
        assert len(printed.err.strip().splitlines()) <= 2


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    code = (
        "import kdpipe.config, kdpipe_cli.main as m\n"
        "def broken(*a): raise RuntimeError('a bug')\n"
        "kdpipe.config.load_recipe = broken\n"
        "import sys; sys.argv = ['kdpipe', 'train-teacher', '--data', 'd', '--recipe', 'an4',"
        f" '--out', {str(tmp_path / 'o')!r}]\n"
        "m.main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "a bug" in result.stderr


def test_a_file_that_ends_early_is_a_bug_and_no_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> object:
        raise EOFError("no data left")

    monkeypatch.setattr("kdpipe.config.load_recipe", broken)
    with pytest.raises(EOFError):
        run(["train-teacher", "--data", "d", "--recipe", "an4", "--out", "o"])


def test_workers_without_shared_memory_are_explained() -> None:
    error = RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible")
    message, remedy = explain(error) or ("", "")
    assert message == "DataLoader worker (pid 7) is killed by signal: Bus error"
    assert "shm-size" in remedy
    assert explain(RuntimeError("mat1 and mat2")) is None


@pytest.mark.parametrize("said", [
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory",
])  # fmt: skip
def test_a_full_memory_is_explained_whoever_says_it(said: str) -> None:
    message, remedy = explain(RuntimeError(said)) or ("", "")
    assert message == "the memory is full"
    assert "batch_frames" in remedy
