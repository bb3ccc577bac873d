"""`kdpipe import-teacher`."""

from __future__ import annotations

from pathlib import Path

import click

from kdpipe_cli.options import PATH, common_options, out_option
from kdpipe_cli.output import answer, say

__all__ = ["command"]


@click.command("import-teacher")
@click.option(
    "--from",
    "toolkit",
    type=click.Choice(["espnet2", "hf"]),
    required=True,
    help="espnet2: an ESPnet2 experiment folder or packed model. hf: a Hugging Face speech"
    " sequence-to-sequence model (Whisper), in a folder.",
)
@click.argument("path", type=PATH)
@out_option("MODEL", "Model directory to write.")
@click.option(
    "--config", metavar="FILE", help="espnet2: the config file inside PATH, where it holds several."
)
@click.option(
    "--weights", metavar="FILE", help="espnet2: the weights (*.pth) inside PATH, likewise."
)
@click.option("--language", metavar="CODE", help="hf: what a multilingual Whisper hears: en, de.")
@click.option("--task", metavar="NAME", help="hf: Whisper's task, transcribe by default.")
@common_options
def command(
    toolkit: str,
    path: Path,
    out: Path,
    config: str | None,
    weights: str | None,
    language: str | None,
    task: str | None,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Make a teacher directory of a model that another toolkit trained.

    PATH is a folder or a zip file; nothing in it is run. The result is an ordinary model
    directory: teacher-dump, decode and prepare --like take it. What cannot be imported is
    refused by config key and value. Mask-CTC models come out as students to decode. A Hugging
    Face teacher gives text alone: only teacher-dump takes it.
    Nothing here is random or needs a GPU: --seed and --device are taken, as by other stages,
    and change nothing.

    \b
    Example:
      kdpipe import-teacher --from espnet2 exp/asr_train_conformer --out exp/teacher
      kdpipe import-teacher --from espnet2 asr_model.zip --out exp/teacher
      kdpipe import-teacher --from hf whisper-small --language en --out exp/whisper
    """
    _refuse_others(toolkit, config=config, weights=weights, language=language, task=task)
    if toolkit == "espnet2":
        from kdpipe.stages.import_espnet import import_espnet

        imported = import_espnet(path, out, config, weights)
    else:
        from kdpipe.stages.import_hf import import_hf

        imported = import_hf(path, out, language, task)
    for note in imported.notes:
        say(f"Note: {note}.")
    content = {"model": str(out), "imported": imported.made, "summary": imported.summary}
    done = "" if imported.made else "already complete, "
    answer({**content, "notes": list(imported.notes)}, f"{out}: {done}{imported.summary}", as_json)


def _refuse_others(toolkit: str, **options: str | None) -> None:
    """An option of the other toolkit would have no effect."""
    own = {"espnet2": ("config", "weights"), "hf": ("language", "task")}[toolkit]
    strange = [name for name, value in options.items() if value and name not in own]
    if strange:
        raise click.UsageError(f"--{strange[0]} does not go with --from {toolkit}.")
