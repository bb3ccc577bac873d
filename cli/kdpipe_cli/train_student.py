"""`kdpipe train-student`."""

from __future__ import annotations

from pathlib import Path

import click

from kdpipe_cli.options import device_option, recipe_options, seed_option

__all__ = ["command"]


@click.command("train-student")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Prepared data.")
@recipe_options
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Model directory.")
@click.option(
    "--targets",
    metavar="STORE",
    help="Teacher store (.zarr, .h5 or a URL). Without it: the plain student.",
)
@click.option("--allow-partial", is_flag=True, help="Take a store that is still being written.")
@seed_option
@device_option
def command(
    data: Path,
    recipe: str,
    overrides: tuple[str, ...],
    out: Path,
    targets: str | None,
    allow_partial: bool,
    seed: int,
    device: str,
) -> None:
    """Train the Mask-CTC student, with a teacher's cached targets or without.

    The same command again resumes after the last finished epoch.

    \b
    Example:
      kdpipe train-student --data exp/data --recipe an4 --out exp/student \\
        --targets exp/train.zarr
    """
    from kdpipe.config import load_recipe
    from kdpipe.stages.train_student import train_student

    chosen = load_recipe(recipe, overrides)
    trained = train_student(data, chosen, out, targets, seed, device, allow_partial)
    click.echo(f"{out}: {'trained' if trained else 'already complete'}")
