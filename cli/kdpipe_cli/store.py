"""`kdpipe store`: look at, check, convert, copy and merge teacher stores."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from kdpipe_cli.options import device_option, json_option, seed_option

__all__ = ["command"]

STORE = click.argument("store", metavar="STORE")
LOCAL_STORE = click.argument("store", metavar="STORE", type=click.Path(path_type=Path))


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
@json_option
def info(store: str, as_json: bool) -> None:
    """Whose targets these are, how many, how large, how faithful.

    \b
    Example:
      kdpipe store info exp/train.zarr
    """
    from kdpipe.store import store_info

    content = store_info(store)
    click.echo(_json(content) if as_json else _listing(content))


@command.command()
@LOCAL_STORE
@click.option(
    "--recompute", type=click.IntRange(1), metavar="N", help="Run the teacher again on N."
)
@click.option("--repair", is_flag=True, help="Dump damaged utterances again.")
@click.option("--teacher", type=click.Path(path_type=Path), help="The store's teacher.")
@click.option("--data", type=click.Path(path_type=Path), help="The data it was dumped from.")
@click.option(
    "--threshold",
    type=click.FloatRange(0.0),
    default=0.01,
    show_default=True,
    help="With --recompute: largest mean KL, nats.",
)
@seed_option
@device_option
@json_option
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
    again on random utterances and compares; --repair dumps what is damaged again.

    \b
    Example:
      kdpipe store verify exp/train.zarr
      kdpipe store verify exp/train.zarr --recompute 20 --teacher exp/teacher --data exp/data
      kdpipe store verify exp/train.zarr --repair --teacher exp/teacher --data exp/data
    """
    if (repair or recompute) and (teacher is None or data is None):
        raise click.UsageError("--recompute and --repair need --teacher and --data.")
    sound = _check(store, as_json)
    if repair and not sound:
        assert teacher is not None
        assert data is not None
        _repair(store, data, teacher, device)
        sound = _check(store, as_json)
    if recompute and sound:
        assert teacher is not None
        assert data is not None
        sound = _recompute(store, data, teacher, recompute, seed, device, threshold)
    sys.exit(0 if sound else 1)


def _check(store: Path, as_json: bool) -> bool:
    """Print what a check of every byte finds; True when the store is sound."""
    from kdpipe.errors import StoreFormatError
    from kdpipe.store.check import verify_store

    try:
        with _counting("verify") as advance:
            report = verify_store(store, advance)
    except StoreFormatError as error:
        click.echo(f"{error.message}.\n{error.remedy}.", err=True)
        sys.exit(2)
    findings = [{"part": f.part, "problem": f.problem, "ids": f.ids} for f in report.findings]
    content = {
        "store": report.path,
        "state": report.state,
        "sound": report.sound,
        "utterances": report.utterances,
        "findings": findings,
        "notes": report.notes,
    }
    click.echo(_json(content) if as_json else _findings(content))
    return report.sound


def _repair(store: Path, data: Path, teacher: Path, device: str) -> None:
    from kdpipe.stages.store_teacher import repair_store

    dropped = repair_store(store, data, teacher, device)
    click.echo(f"dumped again: {len(dropped)} utterances: {' '.join(dropped)}")


def _recompute(
    store: Path, data: Path, teacher: Path, size: int, seed: int, device: str, threshold: float
) -> bool:
    from kdpipe.stages.store_teacher import recompute_sample

    found = recompute_sample(store, data, teacher, size, seed, device)
    verdict = "agrees" if found.within(threshold) else f"DIFFERS by more than {threshold:g} nats"
    click.echo(
        f"teacher on {found.utterances} utterances {verdict}: frame KL {found.frame_kl:.5f},"
        f" token KL {found.token_kl:.5f}, same 1-best {100 * found.best_agrees:.1f}%,"
        f" worst {found.worst}"
    )
    return found.within(threshold)


@command.command()
@LOCAL_STORE
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--compact", is_flag=True, help="Compressed Zarr, for transport and archives.")
@click.option(
    "--level",
    type=click.IntRange(1, 22),
    default=19,
    show_default=True,
    help="Effort of zstd with --compact.",
)
def convert(store: Path, target: Path, compact: bool, level: int) -> None:
    """Write a store again as TARGET, .zarr or .h5, without loss.

    \b
    Example:
      kdpipe store convert exp/train.zarr exp/train.h5
      kdpipe store convert exp/train.zarr share/train.zarr --compact
    """
    from kdpipe.store.convert import convert_store

    with _counting("convert") as advance:
        digest = convert_store(store, target, compact, level, advance)
    click.echo(f"{target}: digest {digest}")


@command.command()
@STORE
@click.argument("target")
def copy(store: str, target: str) -> None:
    """Copy a finished store to TARGET; either may be a URL. Checks on arrival, resumes.

    \b
    Example:
      kdpipe store copy exp/train.zarr s3://bucket/train.zarr
    """
    from kdpipe.store.transfer import copy_store

    with _counting("copy", "B") as advance:
        digest = copy_store(store, target, advance)
    click.echo(f"{target}: digest {digest}")


@command.command()
@click.argument("stores", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The merged store.")
@click.option("--average", is_flag=True, help="Average teachers over the same utterances.")
def merge(stores: tuple[Path, ...], out: Path, average: bool) -> None:
    """Join stores of different utterances, or average several teachers with --average.

    \b
    Example:
      kdpipe store merge exp/a.zarr exp/b.zarr --out exp/ab.zarr
      kdpipe store merge exp/t1.zarr exp/t2.zarr --average --out exp/mean.zarr
    """
    from kdpipe.store.merge import average_stores, join_stores

    with _counting("merge") as advance:
        digest = (average_stores if average else join_stores)(stores, out, advance)
    click.echo(f"{out}: digest {digest}")


@command.command()
@click.argument("first")
@click.argument("second")
@json_option
def diff(first: str, second: str, as_json: bool) -> None:
    """Compare two stores: coverage, settings, KL, agreement of the likeliest.

    \b
    Example:
      kdpipe store diff exp/teacher1.zarr exp/teacher2.zarr
    """
    from kdpipe.store.compare import compare_stores

    with _counting("diff") as advance:
        content = compare_stores(first, second, advance)
    click.echo(_json(content) if as_json else _listing(content))


@command.command()
@STORE
@click.option("--out", type=click.Path(path_type=Path), help="Write the page to this file.")
def card(store: str, out: Path | None) -> None:
    """A page about a store for the people it is shared with (Markdown).

    \b
    Example:
      kdpipe store card exp/train.zarr --out exp/train.md
    """
    from kdpipe.files import atomic_write_text
    from kdpipe.store.summary import store_card

    text = store_card(store)
    if out is None:
        click.echo(text)
    else:
        atomic_write_text(out, text)


@contextmanager
def _counting(label: str, unit: str = "utt") -> Iterator[Callable[[int], object]]:
    """A bar on stderr that counts up."""
    from kdpipe.progress import progress_bar

    with progress_bar(float("inf"), label, unit) as bar:
        yield bar.update


def _json(content: object) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False)


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
    lines = []
    for finding in content["findings"]:
        ids = finding["ids"]
        named = f": {len(ids)} utterances: {' '.join(ids)}" if ids else ""
        lines.append(f"{finding['part']}: {finding['problem']}{named}")
    lines += [f"note: {note}" for note in content["notes"]]
    verdict = "sound" if content["sound"] else "DAMAGED"
    count = f"{content['utterances']} utterances"
    return "\n".join([*lines, f"{content['store']}: {verdict}, {content['state']}, {count}"])
