"""`kdpipe prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kdpipe_cli.options import device_option, json_option, seed_option

__all__ = ["command"]


class SpeedFactors(click.ParamType[tuple[float, ...]]):
    """Factors with commas: 0.9,1.0,1.1."""

    name = "factors"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(factor) for factor in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not factors with commas, like 0.9,1.0,1.1", param, ctx)


@click.command()
@click.option("--train", multiple=True, help="Training manifest; several are joined.")
@click.option("--dev", multiple=True, help="Development manifest; several are joined.")
@click.option("--test", multiple=True, help="Test manifest; the first is the split `test`.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option(
    "--from",
    "corpus",
    nargs=2,
    type=(click.Choice(["librispeech", "aishell1", "kaldi", "lhotse"]), click.Path(path_type=Path)),
    metavar="LAYOUT PATH",
    help="A corpus instead of manifests: librispeech, aishell1, kaldi or lhotse, and its folder."
    " --train, --dev and --test then name its own splits (by default, by their names).",
)
@click.option(
    "--tokenizer",
    type=click.Choice(["char", "bpe"]),
    default="char",
    show_default=True,
    help="Characters or byte-pair pieces, trained on the training split.",
)
@click.option(
    "--vocab-size",
    type=int,
    help="Vocabulary with special tokens (char: default all, bpe: needed).",
)
@click.option(
    "--speed",
    type=SpeedFactors(),
    default="1.0",
    show_default=True,
    help="Speed perturbation of the training split, e.g. 0.9,1.0,1.1.",
)
@click.option(
    "--channel",
    type=click.Choice(["mix", "first"]),
    default="mix",
    show_default=True,
    help="Of audio with several channels.",
)
@click.option(
    "--text-case",
    type=click.Choice(["keep", "upper", "lower"]),
    default="keep",
    show_default=True,
    help="Case of the texts.",
)
@click.option(
    "--text-spaces",
    type=click.Choice(["keep", "remove"]),
    default="keep",
    show_default=True,
    help="`remove` for Mandarin that is written with spaces between words.",
)
@click.option("--allow-unlabelled", is_flag=True, help="Keep utterances without text.")
@click.option(
    "--like",
    type=click.Path(path_type=Path),
    help="Take tokenizer and CMVN from prepared data or a model, instead of making them.",
)
@click.option(
    "--max-rejected",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="Fraction of a split that may be unusable.",
)
@click.option("--workers", type=click.IntRange(0), default=2, show_default=True, help="Processes.")
@seed_option
@device_option
@json_option
def command(
    train: tuple[str, ...],
    dev: tuple[str, ...],
    test: tuple[str, ...],
    out: Path,
    corpus: tuple[Any, Path] | None,
    max_rejected: float,
    workers: int,
    as_json: bool,
    speed: tuple[float, ...],
    seed: int,
    device: str,
    **settings: Any,
) -> None:
    """Make features, CMVN and tokenizer from manifests or a corpus.

    Utterances that cannot be used are listed in OUT/rejected.jsonl. The same command again
    resumes an interrupted run, or says that it is complete. Nothing here is random and all of it
    runs on the CPU: --seed and --device are taken, as by every command, and change nothing.

    \b
    Example:
      kdpipe prepare --train train.jsonl --dev dev.jsonl --test test.jsonl --out exp/data
      kdpipe prepare --from aishell1 data_aishell --speed 0.9,1.0,1.1 --out exp/aishell1
    """
    from kdpipe.stages.prepare import PrepareSettings, prepare
    from kdpipe.stages.prepare_inputs import Corpus, SplitNames, read_splits

    if not (train or dev or test or corpus):
        raise click.UsageError("Give --train with a manifest, or --from with a corpus.")
    source = None if corpus is None else Corpus(*corpus)
    splits = read_splits(SplitNames(train, dev, test), source)
    made = prepare(splits, out, PrepareSettings(speeds=speed, **settings), workers, max_rejected)
    if not made:
        click.echo(f"{out} is already complete.", err=True)
    _show(out, as_json)


def _show(out: Path, as_json: bool) -> None:
    import json

    from kdpipe.features.prepared import PreparedData

    settings = PreparedData.open(out).settings
    if as_json:
        click.echo(json.dumps(settings, ensure_ascii=False))
        return
    tokenizer = settings["tokenizer"]
    click.echo(f"{'split':<16}{'utterances':>12}{'hours':>10}{'rejected':>10}")
    for name, split in settings["splits"].items():
        rejected = sum(split["rejected"].values())
        hours = split["seconds"] / 3600
        click.echo(f"{name:<16}{split['utterances']:>12,}{hours:>10.2f}{rejected:>10,}")
    click.echo(f"tokenizer: {tokenizer['kind']}, {tokenizer['vocab_size']} tokens")
