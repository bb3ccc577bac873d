from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from kdpipe.errors import WorkerDiedError
from kdpipe.parallel import WorkerPool


def square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def fail(number: int) -> None:
    raise KeyError(number)


def die(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_come_in_order(workers: int) -> None:
    with WorkerPool(workers) as pool:
        for _ in range(2):
            results = list(pool.map(square, range(20)))
            assert [value for value, _ in results] == [n * n for n in range(20)]
    assert (os.getpid() in {process for _, process in results}) == (workers < 2)


def test_items_are_taken_only_a_little_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    with WorkerPool(2) as pool:
        results = pool.map(square, items())
        next(results)
        assert len(taken) < 10


def test_errors_and_dead_workers_are_raised() -> None:
    for workers in (1, 2):
        with WorkerPool(workers) as pool, pytest.raises(KeyError):
            list(pool.map(fail, range(3)))
    with WorkerPool(2) as pool, pytest.raises(WorkerDiedError):
        list(pool.map(die, range(3)))
