"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = ["device_option", "json_option", "recipe_options", "seed_option"]

F = TypeVar("F", bound=Callable[..., Any])


def seed_option(function: F) -> F:
    """`--seed`: every random choice of the command follows from it."""
    return click.option("--seed", default=0, show_default=True, help="Random seed.")(function)


def device_option(function: F) -> F:
    """`--device auto|cpu|cuda`."""
    return click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="Where to compute; auto takes a GPU when there is one.",
    )(function)


def json_option(function: F) -> F:
    """`--json`: a machine-readable answer on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")(
        function
    )


def recipe_options(function: F) -> F:
    """`--recipe` and `--set`."""
    function = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change one recipe key, e.g. teacher.training.epochs=20; repeatable.",
    )(function)
    return click.option(
        "--recipe", required=True, help="A shipped recipe (demo, an4, ...) or a TOML file."
    )(function)
