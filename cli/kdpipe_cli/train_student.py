"""`kdpipe train-student`."""

from __future__ import annotations

from pathlib import Path

import click

from kdpipe_cli.options import PATH, common_options, refuse_given, training_options
from kdpipe_cli.output import say

__all__ = ["command"]


@click.command("train-student")
@training_options
@click.option(
    "--targets",
    "stores",
    type=click.Path(),
    multiple=True,
    metavar="STORE",
    help="Teacher store (.zarr, .h5 or a URL). Without it: the plain student.",
)
@click.option(
    "--online-teacher",
    type=PATH,
    metavar="TEACHER",
    help="Run this teacher on every batch instead of reading a store: slower, for comparison.",
)
@click.option(
    "--allow-partial",
    is_flag=True,
    help="Learn from a store that is still being written: the utterances that it has by now.",
)
@common_options
def command(
    data: Path,
    recipe: str,
    overrides: tuple[str, ...],
    out: Path,
    tensorboard: str | None,
    stores: tuple[str, ...],
    online_teacher: Path | None,
    allow_partial: bool,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Train the Mask-CTC student, with a teacher's cached targets or without.

    Utterances without text learn the store's pseudo-labels (recipe key
    distillation.min_confidence). The same command again resumes after the last finished epoch.

    \b
    Example:
      kdpipe train-student --data exp/data --recipe an4 --out exp/student \\
        --targets exp/train.zarr
    """
    if len(stores) > 1:
        raise click.UsageError("Give one --targets: `kdpipe store merge` joins several stores.")
    targets = stores[0] if stores else None
    if targets and online_teacher:
        raise click.UsageError("Give either --targets or --online-teacher.")
    if not targets:
        refuse_given("does nothing without --targets", "allow_partial")
    from kdpipe.stages.train_student import train_student
    from kdpipe_cli.training import chosen_recipe, show_model, tensorboard_folder

    chosen = chosen_recipe(recipe, overrides)
    events = tensorboard_folder(tensorboard, out)
    trained = train_student(
        data, chosen, out, targets, seed, device, allow_partial, events, say, online_teacher
    )
    show_model(out, trained, as_json)
