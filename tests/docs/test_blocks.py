"""Code blocks of README.md and docs/: run, or a comment says why not; every command exists.

Pages are run in a folder that holds a tiny corpus and what the README's five commands made of
it. Commands run in this process, with the tiny sizes of `kdpipe.testing` put before the page's
own settings; everything else in a shell block goes to bash.
"""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from kdpipe.corpus.manifest import read_manifest, write_manifest
from kdpipe.testing import TINY_RECIPE, tiny_manifest
from kdpipe_cli.main import cli, main
from kdpipe_docs.blocks import (
    Block,
    inline_commands,
    kdpipe_arguments,
    read_blocks,
    shell_commands,
)

REPOSITORY = Path(__file__).resolve().parents[2]
README = REPOSITORY / "README.md"
PAGES = [README, REPOSITORY / "data" / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
# Results record what was run, on which machine and when: their commands must exist, no more.
RESULTS = REPOSITORY / "docs" / "results"
RUNNABLE = [page for page in PAGES if any(block.runs for block in read_blocks(page))]
SIZES = [part for override in TINY_RECIPE for part in ("--set", override)]
SMALLER = {
    "prepare": ["--workers", "0"],
    "train-teacher": SIZES,
    "train-student": SIZES,
}
SHELL = ("bash", "sh", "console", "")


def name(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def blocks(*languages: str) -> Iterator[Block]:
    for page in PAGES:
        yield from (block for block in read_blocks(page) if block.language in languages)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_run_or_say_why_not(page: Path) -> None:
    if page.is_relative_to(RESULTS):
        pytest.skip("a record of past runs")
    silent = [
        block.place
        for block in read_blocks(page)
        if not block.mark and (block.language in ("bash", "python") or _has_commands(block))
    ]
    assert silent == [], "put <!-- run --> or <!-- not run: why --> before these blocks"


def _has_commands(block: Block) -> bool:
    return block.language in SHELL and any(
        line.startswith("kdpipe ") for line in shell_commands(block.text)
    )


def test_commands_in_blocks_are_as_the_command_line_has_them() -> None:
    wrong = []
    for block in blocks(*SHELL):
        for line in shell_commands(block.text):
            if block.language != "bash" and not line.startswith("kdpipe "):
                continue
            wrong += [f"{block.place}: {line}: {problem}" for problem in _problems(line, True)]
    assert wrong == []


def test_commands_in_text_and_help_exist() -> None:
    wrong = []
    for page in PAGES:
        for line in inline_commands(page):
            wrong += [f"{name(page)}: {line}: {problem}" for problem in _problems(line, False)]
    for path, command in _all_commands(cli, "kdpipe"):
        for line in shell_commands(inspect.cleandoc(command.help or "")):
            if line.startswith("  kdpipe "):
                wrong += [f"{path} --help: {problem}" for problem in _problems(line, False)]
    assert wrong == []


def test_messages_name_options_that_exist() -> None:
    known = {
        option
        for _, command in _all_commands(cli, "kdpipe")
        for parameter in command.params
        for option in parameter.opts
    } | {"--help", "--dither", "--num-mel-bins"}  # the last two are Kaldi's, in a docstring
    unknown = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno}: {option}"
        for path in sorted((REPOSITORY / "pipeline").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", node.value)
        if option not in known
    ]
    assert unknown == []


def _all_commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for each in group.list_commands(context):
        command = group.get_command(context, each)
        assert command is not None
        yield f"{path} {each}", command
        if isinstance(command, click.Group):
            yield from _all_commands(command, f"{path} {each}")


def _problems(line: str, whole: bool) -> list[str]:
    """What click would say of the kdpipe commands of a line, without running any.

    A `whole` command must be complete; otherwise names and options must exist.
    """
    found = []
    for arguments in kdpipe_arguments(line):
        try:
            _parse(arguments, whole)
        except click.UsageError as error:
            found.append(error.format_message())
    return found


def _parse(arguments: list[str], whole: bool) -> None:
    command: click.Command = cli
    context = click.Context(cli, info_name="kdpipe")
    rest = list(arguments)
    if not whole and rest and rest[0].isupper():  # `kdpipe COMMAND --help`
        return
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(context, rest[0])
        if found is None:
            raise click.UsageError(f"no command {rest[0]}")
        command, rest = found, rest[1:]
        context = click.Context(command, parent=context, info_name=command.name)
    if whole and not {"--help", "--version"} & set(rest) and "..." not in rest:
        command.make_context(command.name, rest, parent=context.parent)
        return
    known = {option for parameter in command.get_params(context) for option in parameter.opts}
    known |= {option for p in command.get_params(context) for option in p.secondary_opts}
    unknown = [word for word in rest if word.startswith("--") and word.split("=")[0] not in known]
    if unknown:
        raise click.UsageError(f"no option {' '.join(unknown)}")


def test_toml_blocks_are_toml() -> None:
    for block in blocks("toml"):
        tomllib.loads(block.text)


@pytest.fixture(scope="module")
def after_readme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny corpus in which the README's blocks were run."""
    folder = tmp_path_factory.mktemp("docs")
    for seed, (split, size) in enumerate({"train": 12, "dev": 4, "test": 4, "pool": 4}.items()):
        manifest = tiny_manifest(folder / "speech" / split, size, seed)
        utterances = read_manifest(manifest)
        write_manifest(folder / f"{split}.jsonl", utterances)
        manifest.unlink()
        for utterance in utterances:
            utterance.audio.with_suffix(".txt").write_text(f"{utterance.text}\n")
    run_page(README, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in RUNNABLE if page != README], ids=name)
def test_blocks_do_what_they_say(page: Path, after_readme: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    shutil.copytree(after_readme, folder)
    _lay_out_demo(folder)
    run_page(page, folder)


def _lay_out_demo(folder: Path) -> None:
    """What `kdpipe demo` has made before it trains, from what the README made."""
    demo = folder / "exp" / "demo"
    shutil.copytree(folder / "exp" / "data", demo / "data")
    shutil.copytree(folder / "exp" / "train.zarr", demo / "train.zarr")
    (demo / "corpus").mkdir()
    shutil.copy(folder / "train.jsonl", demo / "corpus")


def run_page(page: Path, folder: Path) -> None:
    """Run a page's blocks in order; an error names the line."""
    names: dict[str, object] = {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("KDPIPE_CACHE", str(folder / "cache"))
        patch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
        for block in read_blocks(page):
            if not block.runs:
                continue
            if block.language == "python":
                exec(compile(block.text, block.place, "exec"), names)
            elif block.title:
                Path(block.title).write_text(block.text)
            else:
                _run_shell(block, patch)


def _run_shell(block: Block, patch: pytest.MonkeyPatch) -> None:
    for line in shell_commands(block.text):
        words = shlex.split(line, comments=True)
        if words[0] != "kdpipe" or set("|;&$<>") & set("".join(words)):
            subprocess.run(["bash", "-ec", line], check=True)
            continue
        words = [path for word in words for path in _expand(word)]
        arguments = [words[1], *SMALLER.get(words[1], []), *words[2:]]
        patch.setattr(sys, "argv", ["kdpipe", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code, f"{block.place}: {line}: exit code {stopped.value.code}"


def _expand(word: str) -> list[str]:
    """File names for a pattern, as a shell does."""
    return sorted(map(str, Path().glob(word))) if "*" in word else [word]


def test_a_wrong_command_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- run -->\n```bash\nkdpipe prepare --trian x \\\n  --out y\n```\n"
        "Text takes the mark away.\n<!-- run -->\n\nText.\n```bash\nkdpipe fly\n```\n"
    )
    first, second = read_blocks(page)
    assert (first.runs, second.runs) == (True, False)
    (problem,) = _problems(shell_commands(first.text)[0], True)
    assert "--trian" in problem
    assert _problems(second.text, False) == ["no command fly"]
    assert kdpipe_arguments("A=1 torchrun kdpipe store info x | kdpipe demo") == [
        ["store", "info", "x"], ["demo"],
    ]  # fmt: skip
