"""What a shell user counts on: help, completion, stdout and stderr apart, quiet, JSON, Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete
from tests.cli.error_cases import spelled

from kdpipe.progress import progress_bar, progress_shown
from kdpipe.testing import TINY_RECIPE
from kdpipe_cli.main import COMMANDS, cli, run

KDPIPE = [sys.executable, "-m", "kdpipe_cli.main"]
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"OMP_NUM_THREADS": "1"}
World = Mapping[str, Path]


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by its full name."""
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", leaf) for inner, leaf in command.commands.items())
        else:
            yield name, command


COMMANDS_BY_NAME = dict(commands())


@pytest.mark.parametrize("name", COMMANDS_BY_NAME)
def test_help_says_everything(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert run([*name.split(), "-h"]) == 0
    assert capsys.readouterr().out == text
    assert f"Example:\n    kdpipe {name} " in text
    assert max(map(len, text.splitlines())) <= 100
    command = COMMANDS_BY_NAME[name]
    defaults = command.make_context(name, [], resilient_parsing=True).params
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            shown = option.show_default or option.required
            assert shown or defaults[str(option.name)] in (None, False, ()), option.name


@pytest.mark.parametrize("name", COMMANDS_BY_NAME)
def test_every_command_has_the_common_options(name: str) -> None:
    words = {word for option in COMMANDS_BY_NAME[name].params for word in option.opts}
    assert {"--json", "--quiet", "--verbose"} <= words
    if not name.startswith(("store", "report")):
        assert {"--seed", "--device"} <= words


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"kdpipe, version {version('kdpipe')}\n"


@pytest.mark.parametrize(
    ("words", "typed", "offered"),
    [
        ([], "st", {"store"}),
        (["store"], "ver", {"verify"}),
        (["train-teacher"], "--tens", {"--tensorboard"}),
        (["train-teacher", "--recipe"], "a", {"aishell1", "an4"}),
        (["train-teacher", "--set"], "teacher.training.ep", {"teacher.training.epochs="}),
        (["train-student", "--set"], "distillation.ta", {"distillation.tail="}),
        (["decode", "--data", "{data}", "--split"], "t", {"train", "test"}),
        (["decode", "--data", "nowhere", "--split"], "t", set()),
        (["decode", "--mode"], "mask", {"mask-ctc"}),
    ],
)
def test_completion(world: World, words: list[str], typed: str, offered: set[str]) -> None:
    shell = BashComplete(cli, {}, "kdpipe", "_KDPIPE_COMPLETE")
    found = shell.get_completions([word.format_map(world) for word in words], typed)
    assert {item.value for item in found} == offered


def test_the_completion_script(capsys: pytest.CaptureFixture[str]) -> None:
    script = subprocess.run(
        KDPIPE,
        env={**ENVIRONMENT, "_KDPIPE_COMPLETE": "bash_source"},
        capture_output=True,
        text=True,
    )
    assert script.returncode == 0
    assert "complete -o nosort -F _kdpipe_completion kdpipe" in script.stdout


# Complete outputs, so that nothing is computed; {new} is where nothing is.
JSON = {
    "prepare --train {train_manifest} --dev {dev_manifest} --test {test_manifest} --out {data}": {
        "splits", "tokenizer", "feature_digest",
    },
    "train-teacher <tiny> --data {data} --out {teacher}": {"model", "parameters", "last_epoch"},
    "teacher-dump --data {data} --teacher {teacher} --out {store} --beam 2 --nbest 2": {
        "complete", "utterances", "digest",
    },
    "decode --model {student} --data {data} --out {decoded} --mode ctc --device cpu": {
        "wer", "cer", "rtf",
    },
    "decode --model {student} {audio} --mode ctc --out {new}": {"utterances", "skipped"},
    "store info {store}": {"digest", "teacher"},
    "store verify {store}": {"sound", "findings"},
    "store convert {store} {new}.h5": {"store", "digest"},
    "store copy {store} {new}.zarr": {"store", "digest"},
    "store merge {store} {test_store} --out {new}.zarr": {"store", "digest"},
    "store diff {store} {store_h5}": {"same_content", "frame_kl"},
    "store card {store}": {"card"},
    "report {decoded} {store} --pictures 0 --out {new}.html": {"path", "bytes"},
}  # fmt: skip


@pytest.mark.parametrize("command", JSON, ids=lambda command: " ".join(command.split()[:2]))
def test_one_json_object_on_stdout(
    command: str, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {**world, "new": tmp_path / "new"}
    arguments = [part.format_map(places) for part in shlex.split(spelled(command))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "exit", lambda code: None)
        assert run([*arguments, "--json", "--quiet"]) == 0
    printed = capsys.readouterr()
    assert JSON[command] <= set(json.loads(printed.out))
    assert printed.err == ""


def test_quiet_and_verbose(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["prepare", "--out", str(world["data"])]
    for name in ("train", "dev", "test"):
        command += [f"--{name}", str(world[f"{name}_manifest"])]
    said = {}
    for level in ("", "--quiet", "--verbose"):
        assert run([*command, *filter(None, [level])]) == 0
        said[level] = capsys.readouterr()
    assert len({printed.out for printed in said.values()}) == 1
    assert "already complete" in said[""].err
    assert said["--quiet"].err == ""
    for words in ("already complete", f"kdpipe {version('kdpipe')}", "tokenizer: char", "took "):
        assert words in said["--verbose"].err


def test_verbose_shows_where_an_error_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["store", "info", "nothing.zarr", "--verbose"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_recognised_words_go_to_stdout(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_text("no sound")
    files = [str(world["audio"]), str(bad)]
    command = ["decode", "--model", str(world["student"]), "--mode", "ctc", *files]
    assert run([*command, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    (line,) = printed.out.splitlines()
    assert line.split("\t")[0] == world["audio"].stem
    assert "1 of 2 files were skipped: see" in printed.err


def on_terminal(arguments: list[str], **environment: str) -> str:
    """What a command prints when stdout and stderr are a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*KDPIPE, *arguments], stdout=theirs, stderr=theirs, env={**ENVIRONMENT, **environment}
    )
    os.close(theirs)
    process.wait()
    printed = os.read(ours, 4096)
    os.close(ours)
    return printed.decode()


def test_colour_on_a_terminal_unless_it_is_not_wanted() -> None:
    command = ["store", "info", "nothing.zarr"]
    assert "\x1b[31m\x1b[1mError: " in on_terminal(command)
    plain = on_terminal(command, NO_COLOR="1")
    assert plain.startswith("Error: nothing.zarr")
    assert "\x1b" not in plain
    piped = subprocess.run([*KDPIPE, *command], capture_output=True, text=True, env=ENVIRONMENT)
    assert "\x1b" not in piped.stderr
    assert piped.stdout == ""


def test_progress_only_where_it_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert not progress_bar(3, "shown").disable
    with progress_shown(False):
        assert progress_bar(3, "not wanted").disable
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert progress_bar(3, "not a terminal").disable


def test_a_pipe_that_closes(world: World) -> None:
    card = shlex.join([*KDPIPE, "store", "card", str(world["store"])])
    shell = ["bash", "-o", "pipefail", "-c", f"{card} | head -c 1"]
    piped = subprocess.run(shell, capture_output=True, text=True, env=ENVIRONMENT)
    assert piped.stdout == "#"
    assert piped.stderr == ""


def test_a_full_stdout(world: World) -> None:
    with Path("/dev/full").open("w") as full:
        written = subprocess.run(
            [*KDPIPE, "store", "info", str(world["store"])],
            stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
        )  # fmt: skip
    assert written.returncode == 1
    assert "No space left on device" in written.stderr
    assert len(written.stderr.splitlines()) == 2


def interrupted(arguments: list[str], ready: Path) -> str:
    """stderr of a command that gets Ctrl-C, with all its processes, when `ready` has content."""
    process = subprocess.Popen(
        [*KDPIPE, *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=ENVIRONMENT, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not (ready.is_file() and ready.stat().st_size) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert out == ""
    assert process.returncode == 130, err
    return err


def test_ctrl_c_while_training(world: World, tmp_path: Path) -> None:
    recipe = [part for override in TINY_RECIPE for part in ("--set", override)]
    command = ["train-teacher", "--data", str(world["data"]), "--recipe", "demo", *recipe]
    command += ["--set", "teacher.training.epochs=10000", "--out", str(tmp_path / "out")]
    said = interrupted(command, tmp_path / "out" / "checkpoints" / "last.safetensors")
    assert said.strip() == "Interrupted: run the same command again to go on."


def test_ctrl_c_with_worker_processes(world: World, tmp_path: Path) -> None:
    record = json.loads(world["train_manifest"].read_text().splitlines()[0])
    audio = world["train_manifest"].parent / record["audio_filepath"]
    lines = [
        json.dumps({**record, "id": str(number), "audio_filepath": str(audio)})
        for number in range(20_000)
    ]
    (tmp_path / "long.jsonl").write_text("\n".join(lines))
    command = ["prepare", "--train", str(tmp_path / "long.jsonl"), "--out", str(tmp_path / "out")]
    said = interrupted(command, tmp_path / "out" / "train" / "journal.jsonl")
    assert said.strip() == "Interrupted: run the same command again to go on."
