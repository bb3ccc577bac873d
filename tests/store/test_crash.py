"""Kills, full disks and interrupts: nothing acknowledged is lost, and the work goes on."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.benchmarks.store_kill import kill_series
from tests.store.contract import make_header, make_targets, write_targets

from kdpipe.errors import StoreWriteError
from kdpipe.store import StoreWriter, finish, open_store

HEADER = make_header()


@pytest.mark.parametrize(("backend", "writers"), [("zarr", 2), ("hdf5", 1)])
def test_kill_nine(tmp_path: Path, backend: str, writers: int) -> None:
    outcome = kill_series(tmp_path, backend, writers, kills=6)
    assert outcome.clean, outcome
    assert outcome.acknowledged > 0


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["s.zarr", "s.h5"])
def test_a_full_disk(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    writer = StoreWriter(path, HEADER, flush_bytes=4000)
    acknowledged = [0]

    def write() -> None:
        for seed in range(60):
            writer.add(make_targets(seed, HEADER))
            acknowledged.append(len(open_store(path, allow_partial=True)))

    with file_size_limit(20_000), pytest.raises(StoreWriteError, match="cannot write"):
        write()
    assert 0 < acknowledged[-1] == len(open_store(path, allow_partial=True))
    writer.flush()
    writer.close()
    write_targets(path, HEADER, range(60))
    with file_size_limit(20_000), pytest.raises(StoreWriteError, match="cannot write"):
        finish(path)
    digest = finish(path)
    write_targets(tmp_path / f"whole{path.suffix}", HEADER, range(60))
    assert digest == finish(tmp_path / f"whole{path.suffix}")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(
        [name, f"whole{path.suffix}"]
    )


ENDLESS = """
import sys
from pathlib import Path
from kdpipe.store import StoreWriter
from tests.store.contract import make_header, make_targets

header = make_header()
with StoreWriter(Path(sys.argv[1]), header) as writer:
    for seed in range(10**6):
        writer.add(make_targets(seed, header))
        print(seed, flush=True)
"""


def test_an_interrupt_keeps_what_was_computed(tmp_path: Path, repository: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(tmp_path / "s.zarr")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        text=True,
    )
    assert process.stdout is not None
    for _ in range(20):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read().split()
    assert process.wait() != 0
    process.stdout.close()
    store = open_store(tmp_path / "s.zarr", allow_partial=True)
    assert len(store) >= 20 + len(rest)


def test_a_writer_that_fails_leaves_no_lock(tmp_path: Path) -> None:
    def fail() -> None:
        with StoreWriter(tmp_path / "s.zarr", HEADER, flush_bytes=1) as writer:
            writer.add(make_targets(0, HEADER))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    write_targets(tmp_path / "s.zarr", HEADER, range(2))
    finish(tmp_path / "s.zarr")
    assert len(open_store(tmp_path / "s.zarr")) == 2
