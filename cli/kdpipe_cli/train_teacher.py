"""`kdpipe train-teacher`."""

from __future__ import annotations

from pathlib import Path

import click

from kdpipe_cli.options import common_options, training_options

__all__ = ["command"]


@click.command("train-teacher")
@training_options
@common_options
def command(
    data: Path,
    recipe: str,
    overrides: tuple[str, ...],
    out: Path,
    tensorboard: str | None,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Train the autoregressive joint CTC/attention teacher.

    The same command again resumes after the last finished epoch.

    \b
    Example:
      kdpipe train-teacher --data exp/data --recipe an4 --out exp/teacher
      kdpipe train-teacher --data exp/data --recipe an4 --out exp/teacher \\
        --set teacher.training.epochs=40 --tensorboard
    """
    from kdpipe.stages.train_teacher import train_teacher
    from kdpipe_cli.training import chosen_recipe, show_model, tensorboard_folder

    chosen = chosen_recipe(recipe, overrides)
    events = tensorboard_folder(tensorboard, out)
    show_model(out, train_teacher(data, chosen, out, seed, device, events), as_json)
