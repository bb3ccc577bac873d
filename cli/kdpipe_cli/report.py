"""`kdpipe report`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from kdpipe_cli.options import PATH, device_option, option, shell_options
from kdpipe_cli.output import answer, say

__all__ = ["command"]


@click.command("report")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=PATH)
@option("--out", type=PATH, metavar="FILE", default=Path("report.html"), help="Page to write.")
@option(
    "--data",
    type=PATH,
    multiple=True,
    metavar="DATA",
    help="Prepared data with the references and features, where no RUN holds it; repeatable.",
)
@option(
    "--pictures",
    type=click.IntRange(0, 20),
    default=3,
    help="Utterances whose posteriors are drawn; 0 does not run the students.",
)
@device_option
@shell_options
def command(
    runs: tuple[Path, ...],
    out: Path,
    data: tuple[Path, ...],
    pictures: int,
    device: str,
    as_json: bool,
) -> None:
    """Write one self-contained HTML page about RUNs: errors, curves, store, posteriors.

    A RUN is a model directory, a decode output, a teacher store, prepared data, or a folder
    that holds any of these. The page needs no network and says what is missing.

    \b
    Example:
      kdpipe report exp/demo --out exp/demo/report.html
      kdpipe report exp/student exp/decode exp/train.zarr --data exp/data
    """
    from kdpipe.stages.report import write_report
    from kdpipe.stages.report_posteriors import PosteriorSettings

    report = write_report(runs, out, data, PosteriorSettings(pictures=pictures, device=device))
    if report.missing:
        say(f"Not on the page: {', '.join(report.missing)}; it says how to get them.")
    content = {**asdict(report), "path": str(report.path)}
    answer(content, f"{report.path}: {report.bytes / 1e6:.2f} MB", as_json)
