"""What train-teacher and train-student share on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdpipe_cli.output import answer, detail

if TYPE_CHECKING:
    from kdpipe.config import Recipe

__all__ = ["chosen_recipe", "show_model", "tensorboard_folder"]


def chosen_recipe(recipe: str, overrides: Sequence[str]) -> Recipe:
    """The recipe with its overrides; --verbose prints it whole."""
    import tomli_w

    from kdpipe.config import load_recipe, to_table

    chosen = load_recipe(recipe, overrides)
    table = to_table(chosen)
    del table["student"]["training"]["epochs"]  # The stages say it.
    detail(tomli_w.dumps(table))
    return chosen


def tensorboard_folder(given: str | None, out: Path) -> Path | None:
    """Where --tensorboard writes: its value, or by default a folder of the model."""
    return None if given is None else Path(given or out / "tensorboard")


def show_model(out: Path, trained: bool, as_json: bool) -> None:
    """Say what the model directory holds now."""
    from kdpipe.checkpoint import read_card
    from kdpipe.files import read_jsonl
    from kdpipe.models import build_model, count_parameters

    sizes = read_card(out).sizes
    epochs = [r for r in read_jsonl(out / "train.jsonl") if r["type"] == "epoch"]
    last = epochs[-1]
    content = {
        "model": str(out),
        "trained": trained,
        "kind": sizes.kind,
        "parameters": count_parameters(build_model(sizes)),
        "vocab_size": sizes.vocab_size,
        "epochs": len(epochs),
        "seconds": round(sum(float(str(r["seconds"])) for r in epochs), 1),
        "last_epoch": last,
    }
    text = (
        f"{out}: {'trained' if trained else 'already complete'}, {sizes.kind},"
        f" {content['parameters']:,} parameters, {len(epochs)} epochs in {content['seconds']} s,"
        f" greedy dev CER {100 * float(str(last['dev_cer'])):.2f} %"
    )
    answer(content, text, as_json)
