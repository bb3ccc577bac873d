"""`kdpipe demo`."""

from __future__ import annotations

from pathlib import Path

import click

from kdpipe_cli.options import common_options, out_option
from kdpipe_cli.output import answer, say

__all__ = ["command"]


@click.command("demo")
@out_option("DIR", "Folder to write.", required=False, default=Path("exp/demo"))
@common_options
def command(out: Path, seed: int, device: str, as_json: bool) -> None:
    """Run the whole pipeline on synthetic speech; about ten minutes on two cores.

    Speech is synthesised with espeak-ng, a toy teacher is trained and dumped, and three
    students are compared. The same command again resumes.

    \b
    Example:
      kdpipe demo --out exp/demo
    """
    from kdpipe.config import load_recipe
    from kdpipe.files import read_json
    from kdpipe.stages.demo import demo_table, run_demo

    rows = run_demo(out, load_recipe("demo"), seed, device, say)
    answer(read_json(out / "results.json"), demo_table(rows, out), as_json)
