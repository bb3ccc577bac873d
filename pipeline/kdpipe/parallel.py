"""Work spread over processes, results in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from kdpipe.errors import WorkerDiedError

__all__ = ["WorkerPool", "end_with_parent", "interrupts_held"]

A = TypeVar("A")
B = TypeVar("B")
# Jobs handed out per worker ahead of the results taken: enough to keep them busy, few enough
# that results not yet taken stay small.
AHEAD = 3


class WorkerPool:
    """`workers` spawned processes for the length of a `with` block; with one or none, none.

    What is mapped, its items, and `start` (run once in each process) must pickle. The
    processes start with the first job, and end with this process however it ends.
    """

    def __init__(self, workers: int, start: Callable[[], None] | None = None) -> None:
        self._ahead = workers * AHEAD
        self._executor = None
        if workers > 1:
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(workers, context, _start_worker, (start,))

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def map(self, function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
        """`map(function, items)`, in order, a few items ahead of the results taken.

        Raises what `function` raises, and `WorkerDiedError` when a process is killed.
        """
        if self._executor is None:
            yield from map(function, items)
            return
        try:
            yield from self._results(self._executor, function, items)
        except BrokenProcessPool as error:
            raise WorkerDiedError from error

    def _results(
        self, executor: ProcessPoolExecutor, function: Callable[[A], B], items: Iterable[A]
    ) -> Iterator[B]:
        pending: deque[Future[B]] = deque()
        for item in items:
            with interrupts_held():
                pending.append(executor.submit(function, item))
            if len(pending) >= self._ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back during the block; processes started in it never see it.

    It is the parent's to handle: it ends them or waits for them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(start: Callable[[], None] | None) -> None:
    end_with_parent()
    if start is not None:
        start()


def end_with_parent() -> None:
    """End this process when its parent does, also when that is killed and can end nothing."""
    threading.Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
