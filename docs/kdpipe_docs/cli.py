"""The command-line reference, from the click commands themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from kdpipe_cli.main import cli

__all__ = ["cli_page", "commands"]

HEAD = """# Command line

Made from the commands themselves: `kdpipe COMMAND --help` says the same. Results go to standard
output, progress and messages to standard error. The exit code is 0 when the command has done what
it says, 1 for an error that it names, 2 for a command line that it cannot read, 130 when it was
interrupted.
"""


def cli_page() -> str:
    """The whole page as Markdown."""
    parts = [HEAD, _options(cli, click.Context(cli, info_name="kdpipe"))]
    return "\n".join(parts + [_section(path, command) for path, command in commands()])


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command with its full name, groups before what is in them."""
    yield from _below(cli, "kdpipe")


def _below(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group, info_name=path)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from _below(command, f"{path} {name}")


def _section(path: str, command: click.Command) -> str:
    context = click.Context(command, info_name=path)
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
    title, *lines = text.removeprefix("\b").strip().splitlines()
    body = "\n".join(line.strip() for line in lines)
    return f"{title}\n\n```bash\n{body}\n```\n"


def _options(command: click.Command, context: click.Context) -> str:
    rows = [_row(parameter, context) for parameter in command.get_params(context)]
    rows = [row for row in rows if row]
    if not rows:
        return ""
    return "\n".join(["| option | value | default | meaning |", "|---|---|---|---|", *rows]) + "\n"


def _row(parameter: click.Parameter, context: click.Context) -> str:
    """A row of the table; arguments are in the usage line already."""
    if not isinstance(parameter, click.Option) or parameter.hidden:
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
        text = f"`{option.make_metavar(context)}`"
    return f"{text}; repeatable" if option.multiple else text


def _range(kind: click.IntRange | click.FloatRange) -> str:
    low = "" if kind.min is None else f"{'above ' if kind.min_open else ''}{kind.min:,}"
    high = "" if kind.max is None else f"{'below ' if kind.max_open else ''}{kind.max:,}"
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
