"""`kdpipe decode`."""

from __future__ import annotations

from pathlib import Path

import click

from kdpipe_cli.options import device_option, json_option, seed_option

__all__ = ["command"]


@click.command("decode")
@click.option("--model", type=click.Path(path_type=Path), required=True, help="Model directory.")
@click.option("--data", type=click.Path(path_type=Path), help="Prepared data, with --split.")
@click.option("--split", default="test", show_default=True, help="Split of --data.")
@click.argument("audio", nargs=-1, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Output folder.")
@click.option(
    "--mode",
    type=click.Choice(["auto", "ctc", "mask-ctc", "ar"]),
    default="auto",
    show_default=True,
    help="Search; auto takes the model's own.",
)
@click.option("--beam", type=click.IntRange(1, 1000), default=10, show_default=True)
@click.option("--nbest", type=click.IntRange(1, 1000), default=1, show_default=True)
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True)
@click.option(
    "--batch-size",
    type=click.IntRange(1, 10_000),
    default=1,
    show_default=True,
    help="Utterances decoded together.",
)
@click.option(
    "--tokens-per-iteration",
    type=click.IntRange(1, 10_000),
    default=2,
    show_default=True,
    help="K: masks filled per Mask-CTC iteration.",
)
@click.option(
    "--mask-threshold",
    type=click.FloatRange(0.0, 1.0),
    default=0.99,
    show_default=True,
    help="p_thr: CTC tokens less confident than this are masked.",
)
@click.option(
    "--ctc-weight",
    type=click.FloatRange(0.0, 1.0),
    default=0.3,
    show_default=True,
    help="CTC's share of the AR search's score.",
)
@seed_option
@device_option
@json_option
def command(
    model: Path,
    data: Path | None,
    split: str,
    audio: tuple[Path, ...],
    out: Path,
    mode: str,
    beam: int,
    nbest: int,
    threads: int,
    batch_size: int,
    tokens_per_iteration: int,
    mask_threshold: float,
    ctc_weight: float,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Recognise a prepared split (and score it) or audio files.

    Writes hyp.jsonl and score.json. The same command again resumes.

    \b
    Examples:
      kdpipe decode --model exp/student --data exp/data --split test --out exp/decode
      kdpipe decode --model exp/student a.flac b.wav --out exp/words
    """
    if (data is None) == (not audio):
        raise click.UsageError("Give either --data or audio files.")
    import json

    import torch

    from kdpipe.scoring import format_table
    from kdpipe.stages.decode import Runtime, decode_audio, decode_split
    from kdpipe.stages.recognise import SearchSettings

    torch.manual_seed(seed)
    settings = SearchSettings(
        mode=mode,  # type: ignore[arg-type]  # click.Choice holds it to DecodeMode's values
        beam=beam,
        nbest=nbest,
        ctc_weight=ctc_weight,
        tokens_per_iteration=tokens_per_iteration,
        mask_threshold=mask_threshold,
    )
    runtime = Runtime(device, threads, batch_size)
    if data is not None:
        report = decode_split(model, data, split, out, settings, runtime)
    else:
        report = decode_audio(model, audio, out, settings, runtime)
    click.echo(json.dumps(report.to_json(), indent=1) if as_json else format_table([report]))
