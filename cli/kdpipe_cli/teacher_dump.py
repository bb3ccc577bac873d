"""`kdpipe teacher-dump`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from kdpipe_cli.options import device_option, seed_option

__all__ = ["command"]


@click.command("teacher-dump")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Prepared data.")
@click.option("--split", default="train", show_default=True)
@click.option("--teacher", type=click.Path(path_type=Path), required=True, help="Teacher model.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Store, NAME.zarr or NAME.h5."
)
@click.option(
    "--top-k",
    type=click.IntRange(1, 30_000),
    default=32,
    show_default=True,
    help="Classes kept of a distribution at most.",
)
@click.option(
    "--min-prob",
    type=click.FloatRange(0.0, 1.0, max_open=True),
    default=1e-3,
    show_default=True,
    help="Classes less probable than this go into the tail.",
)
@click.option(
    "--codec",
    type=click.Choice(["log8", "fp16", "fp32"]),
    default="log8",
    show_default=True,
    help="How log-probabilities are kept: a byte of 1/32 nat, half or single precision.",
)
@click.option("--nbest", type=click.IntRange(1, 1000), default=10, show_default=True)
@click.option("--beam", type=click.IntRange(1, 1000), default=10, show_default=True)
@click.option("--ctc-weight", type=click.FloatRange(0.0, 1.0), default=0.3, show_default=True)
@click.option(
    "--batch-frames",
    type=click.IntRange(100),
    default=16_000,
    show_default=True,
    help="Feature frames the teacher sees at once.",
)
@click.option("--shard", default="", metavar="I/N", help="This process's part, e.g. 0/8.")
@click.option("--licence", default="", help="Licence of the speech, kept in the header.")
@seed_option
@device_option
def command(
    data: Path,
    split: str,
    teacher: Path,
    out: Path,
    top_k: int,
    min_prob: float,
    codec: str,
    nbest: int,
    beam: int,
    ctc_weight: float,
    batch_frames: int,
    shard: str,
    licence: str,
    seed: int,
    device: str,
) -> None:
    """Run the teacher once over a split and write its targets to a store.

    The same command again resumes. Several processes share the work with --shard, or under
    torchrun, which sets RANK and WORLD_SIZE.

    \b
    Example:
      kdpipe teacher-dump --data exp/data --split train --teacher exp/teacher --out exp/train.zarr
    """
    import torch

    from kdpipe.stages.teacher_dump import DumpSettings, Shard, teacher_dump

    torch.manual_seed(seed)
    index, count = _shard(shard)
    settings = DumpSettings(top_k, min_prob, codec, nbest, beam, ctc_weight, batch_frames)
    complete = teacher_dump(
        data, split, teacher, out, settings, Shard(index, count), device, licence=licence
    )
    state = "complete" if complete else "this shard is done; others are still to come"
    click.echo(f"{out}: {state}")


def _shard(text: str) -> tuple[int, int]:
    """`I/N`, or torchrun's rank and world size, or all of it."""
    if not text:
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    index, slash, count = text.partition("/")
    good = slash and index.isdigit() and count.isdigit() and int(index) < int(count)
    if not good:
        raise click.BadParameter(f"{text!r} is not I/N with 0 <= I < N", param_hint="--shard")
    return int(index), int(count)
