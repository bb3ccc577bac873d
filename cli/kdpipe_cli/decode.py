"""`kdpipe decode`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kdpipe_cli.options import (
    PATH,
    common_options,
    data_option,
    option,
    out_option,
    refuse_given,
    search_options,
    split_option,
)
from kdpipe_cli.output import answer, say

__all__ = ["command"]

AR = ("ctc_weight",)
MASK_CTC = ("tokens_per_iteration", "mask_threshold", "ctc_rescoring")
IDLE = {"ctc": ("beam", *AR, *MASK_CTC), "ar": MASK_CTC, "mask-ctc": AR}
"""The settings that each search does not have. Of `auto`, the model decides: it takes all."""


@click.command("decode")
@click.option("--model", type=PATH, required=True, metavar="MODEL", help="Model directory.")
@data_option(required=False, help="Prepared data, of which --split is decoded and scored.")
@split_option("test")
@click.argument("audio", nargs=-1, type=PATH)
@out_option("DIR", "Folder to write.")
@option(
    "--mode",
    type=click.Choice(["auto", "ctc", "mask-ctc", "ar"]),
    default="auto",
    help="Search; auto takes the model's own.",
)
@search_options(nbest=1)
@option("--threads", type=click.IntRange(1, 1024), default=1, help="CPU threads.")
@option(
    "--batch-size",
    type=click.IntRange(1, 10_000),
    default=1,
    help="Utterances decoded together.",
)
@option(
    "--tokens-per-iteration",
    type=click.IntRange(1, 10_000),
    default=2,
    help="K: masks filled per Mask-CTC iteration.",
)
@option(
    "--mask-threshold",
    type=click.FloatRange(0.0, 1.0),
    default=0.99,
    help="p_thr: CTC tokens less confident than this are masked.",
)
@option(
    "--ctc-rescoring",
    type=click.FloatRange(0.0, 1000.0),
    default=0.0,
    help="Weight of the student's own CTC score on the final Mask-CTC beam.",
)
@common_options
def command(
    model: Path,
    data: Path | None,
    split: str,
    audio: tuple[Path, ...],
    out: Path,
    threads: int,
    batch_size: int,
    seed: int,
    device: str,
    as_json: bool,
    **search: Any,
) -> None:
    """Recognise a prepared split (and score it) or audio files.

    Writes hyp.jsonl and score.json; prints the scores, or the words of audio files. The same
    command again resumes.

    \b
    Example:
      kdpipe decode --model exp/student --data exp/data --split test --out exp/decode
      kdpipe decode --model exp/student a.flac b.wav --out exp/words
    """
    if (data is None) == (not audio):
        raise click.UsageError("Give either --data or audio files.")
    if audio:
        refuse_given("does nothing with audio files", "split")
    mode = search["mode"]
    refuse_given(f"does nothing with --mode {mode}", *IDLE.get(mode, ()))
    import torch

    from kdpipe.scoring import format_table
    from kdpipe.stages.decode import Runtime, decode_audio, decode_split
    from kdpipe.stages.recognise import SearchSettings

    torch.manual_seed(seed)
    settings = SearchSettings(**search)
    runtime = Runtime(device, threads, batch_size)
    if data is not None:
        report = decode_split(model, data, split, out, settings, runtime)
        text = format_table([report])
        if report.skipped:
            lists = f"rejected.jsonl of {data} and {out}"
            say(f"{report.skipped} utterances could not be used: see {lists}.")
    else:
        report = decode_audio(model, audio, out, settings, runtime)
        text = _words(out)
        if report.skipped:
            say(f"{report.skipped} of {len(audio)} files were skipped: see {out}/rejected.jsonl.")
    answer(report.to_json(), text, as_json)


def _words(out: Path) -> str:
    """What was recognised: id, tab, words; one line an audio file."""
    from kdpipe.files import read_jsonl

    return "\n".join(f"{line['id']}\t{line['text']}" for line in read_jsonl(out / "hyp.jsonl"))
