"""`kdpipe prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kdpipe_cli.options import PATH, common_options, option, out_option
from kdpipe_cli.output import answer, say

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


@click.command("prepare")
@click.option(
    "--train", multiple=True, metavar="FILE.jsonl", help="Training manifest; several are joined."
)
@click.option(
    "--dev",
    multiple=True,
    metavar="FILE.jsonl",
    help="Development manifest; several are joined. Trainings need one, with texts.",
)
@click.option(
    "--test",
    multiple=True,
    metavar="FILE.jsonl",
    help="Test manifest; the first is the split `test`, others are named as their files.",
)
@out_option("DATA", "Folder to write.")
@click.option(
    "--from",
    "corpus",
    nargs=2,
    type=(click.Choice(["librispeech", "aishell1", "kaldi", "lhotse"]), PATH),
    metavar="LAYOUT PATH",
    help="A corpus instead of manifests: librispeech, aishell1, kaldi or lhotse, and its folder."
    " --train, --dev and --test then name its own splits (by default, by their names).",
)
@option(
    "--tokenizer",
    type=click.Choice(["char", "bpe"]),
    default="char",
    help="Characters or byte-pair pieces, trained on the training split.",
)
@click.option(
    "--vocab-size",
    type=click.IntRange(1, 1_000_000),
    help="Vocabulary with special tokens. By default all characters; bpe needs it.",
)
@option(
    "--speed",
    type=SpeedFactors(),
    default="1.0",
    help="Speed perturbation of the training split, e.g. 0.9,1.0,1.1.",
)
@click.option(
    "--frame-shift",
    "frame_shift_ms",
    type=float,
    metavar="MS",
    help="Milliseconds from a feature frame to the next, 10 if not given; an encoder frame is four."
    " Fewer give the tokens of fast speech more frames.",
)
@option(
    "--channel",
    type=click.Choice(["mix", "first"]),
    default="mix",
    help="Of audio with several channels.",
)
@option(
    "--text-case",
    type=click.Choice(["keep", "upper", "lower"]),
    default="keep",
    help="Case of the texts.",
)
@option(
    "--text-spaces",
    type=click.Choice(["keep", "remove"]),
    default="keep",
    help="`remove` for Mandarin that is written with spaces between words.",
)
@click.option("--allow-unlabelled", is_flag=True, help="Keep utterances without text.")
@click.option(
    "--like",
    type=PATH,
    metavar="DATA|MODEL",
    help="Take tokenizer, kind of features and CMVN from prepared data or a model.",
)
@option(
    "--max-rejected",
    type=click.FloatRange(0, 1),
    default=0.05,
    help="Fraction of a split that may be unusable.",
)
@option("--workers", type=click.IntRange(0, 1024), default=2, help="Processes.")
@common_options
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
    runs on the CPU: --seed and --device are taken, as by other stages, and change nothing.

    \b
    Example:
      kdpipe prepare --train train.jsonl --dev dev.jsonl --test test.jsonl --out exp/data
      kdpipe prepare --from aishell1 data_aishell --speed 0.9,1.0,1.1 \\
        --out exp/aishell1/data
    """
    from kdpipe.stages.prepare import PrepareSettings, prepare
    from kdpipe.stages.prepare_inputs import Corpus, SplitNames, read_splits

    if not (train or dev or test or corpus):
        raise click.UsageError("Give --train with a manifest, or --from with a corpus.")
    source = None if corpus is None else Corpus(*corpus)
    splits = read_splits(SplitNames(train, dev, test), source)
    made = prepare(splits, out, PrepareSettings(speeds=speed, **settings), workers, max_rejected)
    if not made:
        say(f"{out} is already complete.")
    _show(out, as_json)


def _show(out: Path, as_json: bool) -> None:
    from kdpipe.features.prepared import PreparedData

    settings = PreparedData.open(out).settings
    tokenizer = settings["tokenizer"]
    lines = [f"{'split':<16}{'utterances':>12}{'hours':>10}{'no text':>10}{'rejected':>10}"]
    for name, split in settings["splits"].items():
        rejected = sum(split["rejected"].values())
        hours, silent = split["seconds"] / 3600, split.get("unlabelled", 0)
        lines.append(
            f"{name:<16}{split['utterances']:>12,}{hours:>10.2f}{silent:>10,}{rejected:>10,}"
        )
    lines.append(f"tokenizer: {tokenizer['kind']}, {tokenizer['vocab_size']} tokens")
    answer(settings, "\n".join(lines), as_json)
