"""`kdpipe train-teacher`."""

from __future__ import annotations

from pathlib import Path

import click

from kdpipe_cli.options import device_option, recipe_options, seed_option

__all__ = ["command"]


@click.command("train-teacher")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Prepared data.")
@recipe_options
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Model directory.")
@seed_option
@device_option
def command(
    data: Path, recipe: str, overrides: tuple[str, ...], out: Path, seed: int, device: str
) -> None:
    """Train the autoregressive joint CTC/attention teacher.

    The same command again resumes after the last finished epoch.

    \b
    Example:
      kdpipe train-teacher --data exp/data --recipe an4 --out exp/teacher
    """
    from kdpipe.config import load_recipe
    from kdpipe.stages.train_teacher import train_teacher

    trained = train_teacher(data, load_recipe(recipe, overrides), out, seed, device)
    click.echo(f"{out}: {'trained' if trained else 'already complete'}")
