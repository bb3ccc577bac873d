"""Kill writers with SIGKILL again and again; flip bits; nothing acknowledged may be lost.

    python tests/benchmarks/store_kill.py --kills 100 --flips 200 --json OUT

Each round kills and resumes writers of a store, their number changing, until it is finished;
between kills the store is read. Then what was acknowledged must be there, every utterance once,
sound, and the content digest that of an unbroken run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.store.contract import assert_same_targets, make_header, make_targets  # noqa: E402

from kdpipe.errors import (  # noqa: E402
    BusyOutputError,
    KdpipeError,
    StoreFormatError,
    StoreIncompleteError,
)
from kdpipe.store import StoreWriter, finish, open_store, store_state  # noqa: E402
from kdpipe.store.check import verify_store  # noqa: E402

HEADER = make_header()
UTTERANCES = 120
SHARDS = {"flush_bytes": 1, "shard_bytes": 1 << 16}


@dataclass
class Outcome:
    """What a series of kills came to."""

    backend: str
    writers: int
    kills: int = 0
    rounds: int = 0
    killed_while_finishing: int = 0
    acknowledged: int = 0
    lost: int = 0
    duplicated: int = 0
    wrong_reads: int = 0
    digests_off: int = 0
    unsound: int = 0
    reads: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing went wrong."""
        counts = (self.lost, self.duplicated, self.wrong_reads, self.digests_off, self.unsound)
        return not any(counts) and not self.problems


def write_part(path: Path, index: int, count: int) -> None:
    """A writer process: its part of the utterances, each id printed once it is acknowledged."""
    with contextlib.suppress(BusyOutputError, StoreIncompleteError):
        try:
            add_part(path, index, count)
        except StoreFormatError:
            if store_state(path) != "complete":  # Unless another has finished it meanwhile.
                raise
        print("finishing", flush=True)
        finish(path, expected=[f"utt-{seed:05d}" for seed in range(UTTERANCES)])
    print("end", flush=True)


def add_part(path: Path, index: int, count: int) -> None:
    """Add what the part still lacks."""
    if store_state(path) == "complete":
        return
    with StoreWriter(path, HEADER, f"{index}of{count}", **SHARDS) as writer:
        done = writer.done_ids()
        for seed in range(index, UTTERANCES, count):
            targets = make_targets(seed, HEADER)
            if targets.id not in done and writer.add(targets):
                writer.flush()
                print(targets.id, flush=True)


def start_writers(path: Path, count: int) -> list[subprocess.Popen[str]]:
    """Start the writer processes of one attempt."""
    return [
        subprocess.Popen(
            [sys.executable, __file__, "--child", str(path), str(index), str(count)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def attempt(path: Path, writers: int, delay: float, known: set[str], outcome: Outcome) -> set[str]:
    """Run writers for a while after the first is at work, kill them; what they acknowledged.

    `known` was acknowledged in earlier attempts: a reader must see it at any moment.
    """
    processes = start_writers(path, writers)
    first = processes[0].stdout.readline() if processes[0].stdout else ""
    time.sleep(delay)
    lines = [first.strip()]
    read_some(path, known | acknowledged_in(lines), outcome)
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            outcome.kills += 1
        printed = process.stdout.read().split("\n") if process.stdout else []
        outcome.killed_while_finishing += "finishing" in printed and "end" not in printed
        lines += printed
        if process.wait() not in (0, -signal.SIGKILL):
            outcome.problems.append(f"a writer ended by itself with {process.returncode}")
        if process.stdout:
            process.stdout.close()
    return acknowledged_in(lines)


def acknowledged_in(lines: list[str]) -> set[str]:
    """The ids among the lines that a writer printed; a killed one's last may be cut short."""
    return {line for line in lines if line.startswith("utt-") and len(line) == 9}


def read_some(path: Path, known: set[str], outcome: Outcome) -> None:
    """Read a store that is being written: it opens, all that is known is there, and right."""
    try:
        store = open_store(path, allow_partial=True)
    except KdpipeError as error:
        outcome.wrong_reads += 1
        outcome.problems.append(str(error)[:200])
        return
    hidden = known - set(store)
    if hidden:
        outcome.wrong_reads += 1
        outcome.problems.append(f"not there while reading: {sorted(hidden)}"[:200])
    for utterance in list(store)[-3:]:
        expected = make_targets(int(utterance[4:]), HEADER)
        outcome.reads += 1
        try:
            assert_same_targets(store[utterance], expected, 1 / 32)
        except (AssertionError, KdpipeError) as error:
            outcome.wrong_reads += 1
            outcome.problems.append(str(error)[:200])


def one_round(path: Path, writers: int, kills: int, chance: random.Random, out: Outcome) -> None:
    """Kill and resume until the store is finished or enough were killed, then look at it."""
    acknowledged: set[str] = set()
    while store_state(path) != "complete" and out.kills < kills and not out.problems:
        count = writers if chance.random() < 0.7 else chance.randint(1, writers + 1)
        acknowledged |= attempt(path, count, chance.uniform(0.0, 0.25), acknowledged, out)
    if out.problems:
        return
    if store_state(path) != "complete":
        for process in start_writers(path, 1):
            acknowledged |= {line for line in process.communicate()[0].split() if "utt-" in line}
    digest = finish(path)
    store = open_store(path)
    out.rounds += 1
    out.acknowledged += len(acknowledged)
    out.lost += len(acknowledged - set(store))
    out.duplicated += len(store.ids) - len(set(store.ids))
    out.digests_off += digest != unbroken_digest(path)
    out.unsound += not verify_store(path).sound


def unbroken_digest(path: Path) -> str:
    """The digest of a store of the same utterances written without a break."""
    whole = path.with_name(f"whole{path.suffix}")
    if store_state(whole) != "complete":
        with StoreWriter(whole, HEADER) as writer:
            for seed in range(UTTERANCES):
                writer.add(make_targets(seed, HEADER))
    return finish(whole)


def kill_series(folder: Path, backend: str, writers: int, kills: int, seed: int = 0) -> Outcome:
    """Rounds of kills until there were `kills`."""
    chance = random.Random(f"{backend} {writers} {seed}")
    outcome = Outcome(backend, writers)
    started = time.monotonic()
    while outcome.kills < kills and not outcome.problems:
        path = folder / f"round{outcome.rounds}.{'zarr' if backend == 'zarr' else 'h5'}"
        one_round(path, writers, kills, chance, outcome)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    outcome.seconds = round(time.monotonic() - started, 1)
    return outcome


def kill_row(outcome: Outcome) -> dict[str, object]:
    """A series of kills as a line of the benchmark's JSON: the value should be 0."""
    wrong = outcome.lost + outcome.duplicated + outcome.wrong_reads
    return {
        "name": f"kills_lost_{outcome.backend}_{outcome.writers}_writers",
        "value": wrong + outcome.digests_off + outcome.unsound + len(outcome.problems),
        "unit": "faults",
        "baseline": None,
        "ratio": None,
        "conditions": f"{outcome.kills} kill -9 ({outcome.killed_while_finishing} while finishing)"
        f" over {outcome.rounds} stores, {outcome.acknowledged} utterances acknowledged by killed"
        f" writers, {outcome.reads} reads meanwhile: lost {outcome.lost}, duplicated"
        f" {outcome.duplicated}, wrong reads {outcome.wrong_reads}, digests off"
        f" {outcome.digests_off}, unsound {outcome.unsound}",
    }


def flip_series(folder: Path, backend: str, flips: int) -> dict[str, object]:
    """Flip one random bit at a time, anywhere in a store; count what verify finds."""
    path = folder / f"flips.{'zarr' if backend == 'zarr' else 'h5'}"
    with StoreWriter(path, HEADER) as writer:
        for seed in range(UTTERANCES):
            writer.add(make_targets(seed, HEADER))
    finish(path)
    chance = random.Random(0)
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    sizes = [file.stat().st_size for file in files]
    found = named = 0
    for number in range(flips):
        by_size = number % 2 == 0
        victim = chance.choices(files, sizes)[0] if by_size else chance.choice(files)
        position, bit = chance.randrange(victim.stat().st_size), 1 << chance.randrange(8)
        flip(victim, position, bit)
        report = verify_store(path)
        found += not report.sound
        named += bool(report.damaged_ids)
        flip(victim, position, bit)
    return {
        "name": f"flips_found_{backend}",
        "value": found,
        "unit": "flips",
        "baseline": flips,
        "ratio": found / flips,
        "conditions": f"single bits anywhere in the store's files; {named} of them in records or"
        " index, where the utterance was named",
    }


def flip(path: Path, position: int, mask: int) -> None:
    """Flip bits of one byte of a file."""
    with path.open("r+b") as handle:
        handle.seek(position)
        byte = handle.read(1)[0]
        handle.seek(position)
        handle.write(bytes([byte ^ mask]))


def main() -> None:
    """Run the series asked for and print, or write, what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=3, metavar=("PATH", "INDEX", "COUNT"))
    parser.add_argument("--kills", type=int, default=100, help="per backend and number of writers")
    parser.add_argument("--flips", type=int, default=200, help="per backend")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.child:
        write_part(Path(options.child[0]), int(options.child[1]), int(options.child[2]))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for backend in ("zarr", "hdf5"):
            for writers in (1, 2):
                outcome = kill_series(Path(folder), backend, writers, options.kills)
                rows.append(kill_row(outcome))
                print(json.dumps(vars(outcome)), flush=True)
            rows.append(flip_series(Path(folder), backend, options.flips))
            print(json.dumps(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
