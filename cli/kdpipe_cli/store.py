"""`kdpipe store`: look at, check, convert, copy and merge teacher stores."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
    shell_options,
)
from kdpipe_cli.output import answer, complain

__all__ = ["command"]

# A path or a URL: click leaves it a string, the shell completes paths.
PLACE = click.Path()
STORE = click.argument("store", metavar="STORE", type=PLACE)
LOCAL_STORE = click.argument("store", metavar="STORE", type=PATH)
NO_STORE = 2
"""What verify exits with where there is no store."""


@click.group("store")
def command() -> None:
    """Look at, check, convert, copy and merge teacher stores.

    A store is NAME.zarr or NAME.h5; info, copy, diff and card also take URLs (s3://...).

    \b
    Example:
      kdpipe store info exp/train.zarr
      kdpipe store verify exp/train.zarr
    """


@command.command()
@STORE
@shell_options
def info(store: str, as_json: bool) -> None:
    """Whose targets these are, how many, how large, how faithful.

    \b
    Example:
      kdpipe store info exp/train.zarr
    """
    from kdpipe.store import store_info

    content = store_info(store)
    answer(content, _listing(content), as_json)


@command.command()
@LOCAL_STORE
@click.option(
    "--recompute", type=click.IntRange(1), metavar="N", help="Run the teacher on N utterances."
)
@click.option("--repair", is_flag=True, help="Dump damaged utterances again.")
@click.option("--teacher", type=PATH, metavar="MODEL", help="The store's teacher.")
@data_option(required=False, help="The data it was dumped from.")
@option(
    "--threshold",
    type=click.FloatRange(0.0),
    default=0.01,
    help="With --recompute: largest mean KL, nats.",
)
@common_options
def verify(
    store: Path,
    recompute: int | None,
    repair: bool,
    teacher: Path | None,
    data: Path | None,
    threshold: float,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Check every byte; exit 0 when sound, 1 when damaged, 2 when it is no store.

    Damaged parts are named, with the utterances in them. --recompute also runs the teacher
    again on random utterances and compares; --repair dumps again what is damaged, and what a
    store under construction lacks.

    \b
    Example:
      kdpipe store verify exp/train.zarr
      kdpipe store verify exp/train.zarr --recompute 20 --teacher exp/teacher --data exp/data
      kdpipe store verify exp/train.zarr --repair --teacher exp/teacher --data exp/data
    """
    source = (data, teacher) if data and teacher else None
    if (recompute or repair) and source is None:
        raise click.UsageError("--recompute and --repair need --teacher and --data.")
    if not (recompute or repair):
        refuse_given("does nothing without --recompute or --repair", "teacher", "data")
    if not recompute:
        refuse_given("does nothing without --recompute", "threshold")
    resumed = repair and _resumed(store)
    content = _check(store)
    unfinished = content["state"] == "partial"  # Also by a repair that was broken off.
    if source and repair and (resumed or unfinished or not content["sound"]):
        content = _repair(store, *source, device)
    if source and recompute and content["sound"]:
        content |= _recompute(store, *source, recompute, seed, device, threshold)
    answer(content, _findings(content), as_json)
    sys.exit(0 if content["sound"] else 1)


def _check(store: Path) -> dict[str, Any]:
    """What a check of every byte finds, as plain JSON types."""
    from kdpipe.errors import StoreFormatError
    from kdpipe.store.check import verify_store

    try:
        with _counting("verify") as advance:
            report = verify_store(store, advance)
    except StoreFormatError as error:
        complain(error.message, error.remedy)
        sys.exit(NO_STORE)
    return {
        "store": report.path,
        "state": report.state,
        "sound": report.sound,
        "utterances": report.utterances,
        "findings": [{"part": f.part, "problem": f.problem, "ids": f.ids} for f in report.findings],
        "notes": report.notes,
    }


def _resumed(store: Path) -> bool:
    """Whether a repair was broken off where the store is under no name, and now is again."""
    from kdpipe.errors import StoreFormatError
    from kdpipe.store.repair import complete_swap

    with suppress(StoreFormatError):
        return complete_swap(store)
    return False


def _repair(store: Path, data: Path, teacher: Path, device: str) -> dict[str, Any]:
    """Mend the store; what a check finds afterwards, and what was dumped again."""
    from kdpipe.stages.store_teacher import repair_store

    dropped = repair_store(store, data, teacher, device)
    return {**_check(store), "dumped_again": dropped}


def _recompute(
    store: Path, data: Path, teacher: Path, size: int, seed: int, device: str, threshold: float
) -> dict[str, Any]:
    """Compare with what the teacher says now; a store that differs is not sound."""
    from kdpipe.stages.store_teacher import recompute_sample

    found = recompute_sample(store, data, teacher, size, seed, device)
    agrees = found.within(threshold)
    recomputed = {**found.to_json(), "threshold": threshold, "agrees": agrees}
    return {"sound": agrees, "recomputed": recomputed}


@command.command()
@LOCAL_STORE
@click.argument("target", metavar="TARGET", type=PATH)
@click.option("--compact", is_flag=True, help="Compressed Zarr, for transport and archives.")
@option(
    "--level",
    type=click.IntRange(1, 22),
    default=19,
    help="Effort of zstd with --compact.",
)
@shell_options
def convert(store: Path, target: Path, compact: bool, level: int, as_json: bool) -> None:
    """Write a store again as TARGET, .zarr or .h5, without loss.

    \b
    Example:
      kdpipe store convert exp/train.zarr exp/train.h5
      kdpipe store convert exp/train.zarr share/train.zarr --compact
    """
    if not compact:
        refuse_given("does nothing without --compact", "level")
    from kdpipe.store.convert import convert_store

    with _counting("convert") as advance:
        digest = convert_store(store, target, compact, level, advance)
    _show_written(target, digest, as_json)


@command.command()
@STORE
@click.argument("target", metavar="TARGET", type=PLACE)
@shell_options
def copy(store: str, target: str, as_json: bool) -> None:
    """Copy a finished store to TARGET; either may be a URL. Checks on arrival, resumes.

    \b
    Example:
      kdpipe store copy exp/train.zarr s3://bucket/train.zarr
    """
    from kdpipe.store.transfer import copy_store

    with _counting("copy", "B") as advance:
        digest = copy_store(store, target, advance)
    _show_written(target, digest, as_json)


@command.command()
@click.argument("stores", metavar="STORE...", nargs=-1, required=True, type=PATH)
@out_option("STORE", "Merged store to write.")
@click.option("--average", is_flag=True, help="Average teachers over the same utterances.")
@shell_options
def merge(stores: tuple[Path, ...], out: Path, average: bool, as_json: bool) -> None:
    """Join stores of different utterances, or average several teachers with --average.

    \b
    Example:
      kdpipe store merge exp/a.zarr exp/b.zarr --out exp/ab.zarr
      kdpipe store merge exp/t1.zarr exp/t2.zarr --average --out exp/mean.zarr
    """
    from kdpipe.store.merge import average_stores, join_stores

    with _counting("merge") as advance:
        digest = (average_stores if average else join_stores)(stores, out, advance)
    _show_written(out, digest, as_json)


@command.command()
@click.argument("first", metavar="STORE", type=PLACE)
@click.argument("second", metavar="STORE", type=PLACE)
@shell_options
def diff(first: str, second: str, as_json: bool) -> None:
    """Compare two stores: coverage, settings, KL, agreement of the likeliest.

    \b
    Example:
      kdpipe store diff exp/teacher1.zarr exp/teacher2.zarr
    """
    from kdpipe.store.compare import compare_stores

    with _counting("diff") as advance:
        content = compare_stores(first, second, advance)
    answer(content, _listing(content), as_json)


@command.command()
@STORE
@out_option("FILE.md", "Write the page to this file, not to stdout.", required=False)
@shell_options
def card(store: str, out: Path | None, as_json: bool) -> None:
    """A page about a store for the people it is shared with (Markdown).

    \b
    Example:
      kdpipe store card exp/train.zarr --out exp/train.md
    """
    from kdpipe.files import atomic_write_text
    from kdpipe.store.summary import store_card

    text = store_card(store)
    if out is not None and out.resolve() == Path(store).resolve():
        raise click.UsageError("--out is the store itself.")
    if out is not None:
        atomic_write_text(out, text)
    content = {"store": store, "written": None if out is None else str(out), "card": text}
    answer(content, text if out is None else f"{out}: card of {store}", as_json)


def _show_written(place: Path | str, digest: str, as_json: bool) -> None:
    answer({"store": str(place), "digest": digest}, f"{place}: digest {digest}", as_json)


@contextmanager
def _counting(label: str, unit: str = "utt") -> Iterator[Callable[[int], object]]:
    """A bar on stderr that counts up."""
    from kdpipe.progress import progress_bar

    with progress_bar(float("inf"), label, unit) as bar:
        yield bar.update


def _listing(content: dict[str, Any]) -> str:
    """One line a key; nested keys joined by dots."""
    flat = dict(_flatten(content))
    width = max(map(len, flat))
    return "\n".join(f"{name:{width}}  {value}" for name, value in flat.items())


def _flatten(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in content.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, f"{value:.4g}" if isinstance(value, float) else str(value)


def _findings(content: dict[str, Any]) -> str:
    """What verify found, a line each, and the verdict."""
    lines = [_finding(**finding) for finding in content["findings"]]
    lines += [f"note: {note}" for note in content["notes"]]
    if dropped := content.get("dumped_again"):
        lines.append(f"dumped again: {len(dropped)} utterances: {' '.join(dropped)}")
    if found := content.get("recomputed"):
        lines.append(_recomputed(**found))
    verdict = "sound" if content["sound"] else "DAMAGED"
    count = f"{content['utterances']} utterances"
    return "\n".join([*lines, f"{content['store']}: {verdict}, {content['state']}, {count}"])


def _finding(part: str, problem: str, ids: tuple[str, ...]) -> str:
    named = f": {len(ids)} utterances: {' '.join(ids)}" if ids else ""
    return f"{part}: {problem}{named}"


def _recomputed(
    utterances: int,
    frame_kl: float,
    token_kl: float,
    nbest_distance: float,
    best_agrees: float,
    worst: str,
    threshold: float,
    agrees: bool,
) -> str:
    verdict = "agrees" if agrees else f"DIFFERS by more than {threshold:g}"
    return (
        f"teacher on {utterances} utterances {verdict}: frame KL {frame_kl:.5f},"
        f" token KL {token_kl:.5f}, n-best distance {nbest_distance:.5f},"
        f" same 1-best {100 * best_agrees:.1f}%, worst {worst}"
    )
