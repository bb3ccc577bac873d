"""`kdpipe demo`."""

from __future__ import annotations

from pathlib import Path

import click

from kdpipe_cli.options import device_option, seed_option

__all__ = ["command"]


@click.command("demo")
@click.option("--out", type=click.Path(path_type=Path), default=Path("exp/demo"), show_default=True)
@seed_option
@device_option
def command(out: Path, seed: int, device: str) -> None:
    """Run the whole pipeline on synthetic speech; about ten minutes on two cores.

    Speech is synthesised with espeak-ng, a toy teacher is trained and dumped, and three
    students are compared. The same command again resumes.

    \b
    Example:
      kdpipe demo --out exp/demo
    """
    from kdpipe.config import load_recipe
    from kdpipe.stages.demo import demo_table, run_demo

    rows = run_demo(out, load_recipe("demo"), seed, device, lambda line: click.echo(line, err=True))
    click.echo(demo_table(rows, out))
