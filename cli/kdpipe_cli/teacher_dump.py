"""`kdpipe teacher-dump`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from kdpipe_cli.options import (
    PATH,
    common_options,
    data_option,
    option,
    out_option,
    search_options,
    split_option,
)
from kdpipe_cli.output import answer, say

__all__ = ["command"]


@click.command("teacher-dump")
@data_option()
@split_option("train")
@click.option("--teacher", type=PATH, required=True, metavar="MODEL", help="Teacher model.")
@out_option("STORE", "Store to write, NAME.zarr or NAME.h5.")
@option(
    "--top-k",
    type=click.IntRange(1, 30_000),
    default=32,
    help="Classes kept of a distribution at most.",
)
@option(
    "--min-prob",
    type=click.FloatRange(0.0, 1.0, max_open=True),
    default=1e-3,
    help="Classes less probable than this go into the tail.",
)
@option(
    "--codec",
    type=click.Choice(["log8", "fp16", "fp32"]),
    default="log8",
    help="How log-probabilities are kept: a byte of 1/32 nat, half or single precision.",
)
@search_options(nbest=10)
@option(
    "--batch-frames",
    type=click.IntRange(100),
    default=16_000,
    help="Feature frames the teacher sees at once.",
)
@option(
    "--text-case",
    type=click.Choice(["auto", "keep", "upper", "lower"]),
    default="auto",
    help="Case of a Hugging Face teacher's text; auto: that of the data's tokenizer.",
)
@option(
    "--punctuation",
    type=click.Choice(["strip", "keep"]),
    default="strip",
    help="Of a Hugging Face teacher's text; strip: take out what the tokenizer cannot write.",
)
@click.option(
    "--shard",
    metavar="I/N",
    help="This process's part, 0/8 to 7/8 of eight; by default all, or torchrun's share.",
)
@option("--licence", default="", help="Licence of the speech, kept in the header.")
@common_options
def command(
    data: Path,
    split: str,
    teacher: Path,
    out: Path,
    shard: str | None,
    licence: str,
    seed: int,
    device: str,
    as_json: bool,
    **settings: Any,
) -> None:
    """Run the teacher once over a split and write its targets to a store.

    The same command again resumes. Several processes share the work with --shard, or under
    torchrun, which sets RANK and WORLD_SIZE.

    \b
    Example:
      kdpipe teacher-dump --data exp/data --split train --teacher exp/teacher --out exp/train.zarr
    """
    part = _shard(shard)

    import torch

    from kdpipe.stages.teacher_dump import DumpSettings, Shard, teacher_dump
    from kdpipe.store import store_info

    torch.manual_seed(seed)
    chosen = DumpSettings(**settings)
    complete = teacher_dump(
        data, split, teacher, out, chosen, Shard(*part), device, licence=licence, tell=say
    )
    state = "complete" if complete else "this shard is done; others are still to come"
    content = store_info(out)
    answer(content, f"{out}: {state}, {content['utterances']:,} utterances", as_json)


def _shard(text: str | None) -> tuple[int, int]:
    """`I/N`, or torchrun's rank and world size, or all of it."""
    if not text and {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        text = f"{os.environ['RANK']}/{os.environ['WORLD_SIZE']}"
    if not text:
        return 0, 1
    index, slash, count = text.partition("/")
    good = slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)
    if not good:
        raise click.BadParameter(f"{text!r} is not I/N with 0 <= I < N", param_hint="--shard")
    return int(index), int(count)
