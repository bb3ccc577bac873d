"""The reference of recipe keys, from the dataclasses that read them."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from importlib import resources
from typing import Any

from kdpipe.config import Recipe, recipe_names
from kdpipe.models.sizes import size_table

__all__ = ["config_page", "number", "recipe_keys", "sizes"]

HEAD = """# Recipe keys

A recipe is a TOML file; `--recipe` takes the name of a shipped one or a path. Every key below may
be left out where it has a default. `--set KEY=VALUE` changes one key of a recipe for one run, for
example `--set teacher.training.epochs=20 --set student.stages.1.beta_sequence=0.5` (entries of a
list are counted from 0). An unknown key, a wrong type or a value out of range stops the command
before anything is read. The student's epochs are those of `student.stages`;
`student.training.epochs` is refused.

Made from the dataclasses of `kdpipe.config`.
"""


SIZES = """## The named sizes

Parameters of `size = "L"`, `"M"`, `"S"`, `"XS"` as a teacher, beside Table 2 of the paper. L, S and
XS are the paper's with Mandarin's 4233 characters, M with English's 5000 pieces: embedding, output
and CTC layers grow with the vocabulary. A Mask-CTC student has one class (the mask) more.

| size | 4233 tokens | 5000 tokens | the paper |
|---|---|---|---|"""


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a recipe: its dotted name and all that is known of it."""

    name: str
    kind: str
    default: str
    range: str
    meaning: str


def config_page() -> str:
    """The whole page as Markdown."""
    sections = [_section(cls, paths) for cls, paths in _sections().items()]
    recipes = [_recipe(name) for name in recipe_names()]
    return "\n".join([HEAD, *sections, sizes(), "## The shipped recipes\n", *recipes])


def sizes() -> str:
    """Parameter counts of the named sizes beside the paper's."""
    pairs = zip(size_table(4233), size_table(5000), strict=True)
    rows = [
        f"| {few.name} | {few.parameters / 1e6:.1f} M | {many.parameters / 1e6:.1f} M |"
        f" {few.paper_millions:.1f} M |"
        for few, many in pairs
    ]
    return "\n".join([SIZES, *rows, ""])


def recipe_keys() -> Iterator[Key]:
    """Every key that is not a table, once for each section class."""
    for cls in _sections():
        yield from _keys(cls)


def _sections() -> dict[type[Any], list[str]]:
    """Each section's class with the tables that are read by it, outermost first."""
    found: dict[type[Any], list[str]] = {}
    _collect(Recipe, "", found)
    return found


def _collect(cls: type[Any], path: str, found: dict[type[Any], list[str]]) -> None:
    found.setdefault(cls, []).append(path)
    for name, hint in typing.get_type_hints(cls).items():
        dotted = f"{path}.{name}".lstrip(".")
        if dataclasses.is_dataclass(hint):
            _collect(typing.cast(type[Any], hint), dotted, found)
        elif typing.get_origin(hint) is tuple:
            _collect(typing.get_args(hint)[0], f"{dotted}.[]", found)


def _section(cls: type[Any], paths: list[str]) -> str:
    keys = list(_keys(cls))
    if not keys:
        return ""
    title = " and ".join(_table_name(path) for path in paths)
    rows = [
        f"| `{key.name}` | {key.kind} | {key.default} | {key.range} | {key.meaning} |"
        for key in keys
    ]
    return "\n".join(
        [
            f"## {title}\n",
            f"{(cls.__doc__ or '').strip()}\n",
            "| key | type | default | range | meaning |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _table_name(path: str) -> str:
    if not path:
        return "Top level"
    return f"`[[{path.removesuffix('.[]')}]]`" if path.endswith(".[]") else f"`[{path}]`"


def _keys(cls: type[Any]) -> Iterator[Key]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint) or typing.get_origin(hint) is tuple:
            continue
        yield Key(
            field.name,
            _kind(hint),
            "needed" if field.default is dataclasses.MISSING else f"`{_toml(field.default)}`",
            _range(field.metadata),
            str(field.metadata.get("help", "")).replace("|", "\\|"),
        )


def _kind(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f'`"{choice}"`' for choice in typing.get_args(hint))
    return {str: "string", int: "integer", float: "number", bool: "true, false"}[hint]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else f"{value}"


def _range(metadata: typing.Mapping[str, Any]) -> str:
    low, high = metadata.get("low"), metadata.get("high")
    return "" if low is None or high is None else f"{number(low)} to {number(high)}"


def number(value: float) -> str:
    """1,000 or 0.05 or 1e-08: whole numbers with thousands marked."""
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _recipe(name: str) -> str:
    file = resources.files("kdpipe") / "recipes" / f"{name}.toml"
    return f"### {name}\n\n```toml\n{file.read_text(encoding='utf-8').strip()}\n```\n"
