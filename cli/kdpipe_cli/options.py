"""Options that several commands share, as decorators; `chain` makes one of several."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from kdpipe_cli.completion import complete_recipe, complete_setting, complete_split
from kdpipe_cli.output import Verbosity, speaking

__all__ = [
    "PATH",
    "chain",
    "common_options",
    "data_option",
    "device_option",
    "json_option",
    "option",
    "out_option",
    "recipe_options",
    "refuse_given",
    "search_options",
    "seed_option",
    "shell_options",
    "split_option",
    "training_options",
]

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[Any], Any]


class _LocalPath(click.Path):
    """A path on this machine: as one, a URL would be a folder named `s3:`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "://" in str(value):
            self.fail(f"{value} is a URL; `kdpipe store copy` brings stores there and back", param)
        return super().convert(value, param, ctx)


PATH = _LocalPath(path_type=Path)


def option(*names: str, **settings: Any) -> Decorator:
    """`click.option` that shows its default."""
    return click.option(*names, **{"show_default": True, **settings})


def chain(*decorators: Decorator) -> Decorator:
    """Several decorators as one; the help lists their options in this order."""

    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def refuse_given(why: str, *names: str) -> None:
    """A usage error for an option among `names` that was given, even with its default's value.

    `why` says after the option's name with what, or without what, it does nothing.
    """
    context = click.get_current_context()
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name in names and source is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{parameter.opts[0]} {why}.")


def _verbosity_options(function: Callable[..., Any]) -> Any:
    """`--quiet` and `--verbose`, in force while the command runs."""

    @wraps(function)
    def run(*arguments: Any, quiet: bool, verbose: bool, **settings: Any) -> Any:
        if quiet and verbose:
            raise click.UsageError("Give --quiet or --verbose, not both.")
        level = Verbosity.QUIET if quiet else Verbosity.VERBOSE if verbose else Verbosity.NORMAL
        with speaking(level, settings):
            return function(*arguments, **settings)

    return chain(
        click.option("-q", "--quiet", is_flag=True, help="Print results and errors only."),
        click.option(
            "-v", "--verbose", is_flag=True, help="Print settings, versions, device and time too."
        ),
    )(run)


def data_option(required: bool = True, help: str = "Prepared data.") -> Decorator:  # noqa: A002
    """`--data`: what `kdpipe prepare` wrote."""
    return option("--data", type=PATH, required=required, metavar="DATA", help=help)


def out_option(metavar: str, help: str, **settings: Any) -> Decorator:  # noqa: A002
    """`--out`: what the command writes."""
    return option("--out", type=PATH, metavar=metavar, help=help, **{"required": True, **settings})


def split_option(default: str) -> Decorator:
    """`--split` of `--data`."""
    return option(
        "--split",
        default=default,
        help="Split of the prepared data.",
        shell_complete=complete_split,
    )


# numpy refuses a seed below 0; every generator that is seeded takes 32 bits.
seed_option = option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Random seed.")
device_option = option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="Where to compute; auto takes a GPU when there is one.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout instead of text."
)

shell_options = chain(json_option, _verbosity_options)
common_options = chain(seed_option, device_option, shell_options)

recipe_options = chain(
    option(
        "--recipe",
        required=True,
        metavar="NAME|FILE.toml",
        help="A shipped recipe (demo, an4, aishell1, librispeech) or a TOML file.",
        shell_complete=complete_recipe,
    ),
    option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change one recipe key, such as specaugment.time_masks=1; repeatable. A teacher has"
        " the keys of teacher and specaugment, a student all others and those of specaugment.",
        shell_complete=complete_setting,
    ),
)

tensorboard_option = click.option(
    "--tensorboard",
    is_flag=False,
    flag_value="",
    metavar="[DIR]",
    help="Write the scalars of train.jsonl for TensorBoard too, into DIR or MODEL/tensorboard"
    " (pip install '.[tensorboard]' in kdpipe's clone).",
)

training_options = chain(
    data_option(),
    recipe_options,
    out_option("MODEL", "Model directory to write."),
    tensorboard_option,
)


def search_options(nbest: int) -> Decorator:
    """`--beam`, `--nbest` and `--ctc-weight`; `nbest` is the command's own default."""
    return chain(
        option("--beam", type=click.IntRange(1, 1000), default=10, help="Width of the search."),
        option(
            "--nbest",
            type=click.IntRange(1, 1000),
            default=nbest,
            help="Hypotheses written of an utterance.",
        ),
        option(
            "--ctc-weight",
            type=click.FloatRange(0.0, 1.0),
            default=0.3,
            help="CTC's share of the joint CTC/attention score.",
        ),
    )
