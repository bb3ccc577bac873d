"""What the shell offers behind an option: recipes, recipe keys, splits."""

from __future__ import annotations

import click

__all__ = ["complete_recipe", "complete_setting", "complete_split"]


def complete_recipe(context: click.Context, parameter: click.Parameter, typed: str) -> list[str]:
    """Shipped recipes that begin with what was typed."""
    from kdpipe.config import recipe_names

    return [name for name in recipe_names() if name.startswith(typed)]


def complete_setting(context: click.Context, parameter: click.Parameter, typed: str) -> list[str]:
    """Recipe keys that begin with what was typed, up to their `=`."""
    from kdpipe.config import Recipe, setting_keys

    return [f"{key}=" for key in setting_keys(Recipe) if key.startswith(typed)]


def complete_split(context: click.Context, parameter: click.Parameter, typed: str) -> list[str]:
    """Splits of the --data given so far; nothing where it cannot be read."""
    from pathlib import Path

    from kdpipe.errors import KdpipeError
    from kdpipe.files import read_json

    data = context.params.get("data")
    try:
        content = read_json(Path(data) / "data.json") if data else {}
    except (OSError, KdpipeError):
        return []
    splits = content.get("splits", {}) if isinstance(content, dict) else {}
    return [name for name in splits if name.startswith(typed)]
