"""The command-line reference, from the click commands themselves."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterable, Iterator

import click

from kdpipe_cli.main import cli
from kdpipe_docs.config import number

__all__ = ["cli_page", "commands"]

HEAD = """# Command line

Made from the commands themselves: `kdpipe COMMAND --help` says the same. Results go to standard
output, progress and messages to standard error. The exit code is 0 when the command has done what
it says, 1 for an error that it names, 2 for a command line that it cannot read, 130 when it was
interrupted.
"""

COMMON = ("--seed", "--device", "--json", "--quiet", "--verbose", "--help")
"""Options of nearly every command: described once, and named at each that has them."""


def cli_page() -> str:
    """The whole page as Markdown."""
    found = list(commands())
    parts = [HEAD, "## Common options\n", _common(command for _, command in found)]
    return "\n".join(parts + [_section(path, command) for path, command in found])


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command with its full name, groups before what is in them."""
    yield from _below(cli, "kdpipe")


def _below(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group, info_name=path, **cli.context_settings)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from _below(command, f"{path} {name}")


def _common(found: Iterable[click.Command]) -> str:
    """The options of `COMMON`, each as the first command that has it describes it."""
    rows: dict[str, str] = {}
    for command in found:
        context = click.Context(command, **cli.context_settings)
        for parameter in command.get_params(context):
            rows.setdefault(_long_name(parameter), _row(parameter, context))
    return _table([rows[name] for name in COMMON if name in rows])


def _section(path: str, command: click.Command) -> str:
    context = click.Context(command, info_name=path, **cli.context_settings)
    depth = "#" * path.count(" ")
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    return "\n".join(
        [
            f"#{depth} {path}\n",
            *map(_paragraph, inspect.cleandoc(command.help or "").split("\n\n")),
            f"```text\n{usage}\n```\n",
            _options(command, context),
        ]
    )


def _paragraph(text: str) -> str:
    """One paragraph of a help text; after click's \\b mark, lines stay as they are."""
    if not text.startswith("\b"):
        return f"{text}\n"
    title, *lines = text.removeprefix("\b").strip("\n").splitlines()
    body = textwrap.dedent("\n".join(lines))
    return f"{title}\n\n```bash\n{body}\n```\n"


def _options(command: click.Command, context: click.Context) -> str:
    """The table of a command's own options, and the names of the common ones it has."""
    rows, common = [], []
    for parameter in command.get_params(context):
        name = _long_name(parameter)
        if name in COMMON:
            common.append(f"`{name}`")
        elif isinstance(parameter, click.Option) and not parameter.hidden:
            rows.append(_row(parameter, context))
    return f"{_table(rows)}\n[Common](#common-options): {', '.join(common)}\n"


def _long_name(parameter: click.Parameter) -> str:
    """`--json` of `-j/--json`; the name of an argument."""
    return max(parameter.opts, key=len)


def _table(rows: list[str]) -> str:
    if not rows:
        return ""
    return "\n".join(["| option | value | default | meaning |", "|---|---|---|---|", *rows]) + "\n"


def _row(parameter: click.Parameter, context: click.Context) -> str:
    """A row of the table; arguments are in the usage line already."""
    if not isinstance(parameter, click.Option):
        return ""
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    cells = [names, _value(parameter, context), _default(parameter), parameter.help or ""]
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _value(option: click.Option, context: click.Context) -> str:
    if option.is_flag or option.count:
        return ""
    kind = option.type
    if isinstance(kind, click.Choice):
        text = ", ".join(f"`{choice}`" for choice in kind.choices)
    elif isinstance(kind, click.IntRange | click.FloatRange):
        text = _range(kind)
    else:
        text = " or ".join(f"`{word}`" for word in option.make_metavar(context).split("|"))
    return f"{text}; repeatable" if option.multiple else text


def _range(kind: click.IntRange | click.FloatRange) -> str:
    low = "" if kind.min is None else f"{'above ' if kind.min_open else ''}{number(kind.min)}"
    high = "" if kind.max is None else f"{'below ' if kind.max_open else ''}{number(kind.max)}"
    return f"{low} to {high}" if low and high else f"{low} or more" if low else f"up to {high}"


def _default(option: click.Option) -> str:
    if option.required:
        return "needed"
    default = option.to_info_dict()["default"]
    if option.is_flag or default in (None, "", ()):
        return ""
    return f"`{default}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
