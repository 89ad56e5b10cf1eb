"""The same work on many pieces in several processes: fresh ones, with one torch thread each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import TypeVar

import torch

from ..errors import DmgalError

AHEAD = 4  # pieces given out or answered, for each worker: bounds the memory of results that nobody has taken yet
THREAD_COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # read once, when numpy is imported

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def completed(work: Callable[[Piece], Result], pieces: Sequence[Piece], workers: int | None) -> Iterator[Result]:
    """Results in the order in which they come; the first error ends all.

    Args:
        work: a function on the top level of a file, or a partial of one: fresh processes import it.
        pieces: what to work on.
        workers: processes; None takes one per core that this process may use, 1 works in this process.

    Raises:
        DmgalError: the processes could not start, or were killed.
    """
    workers = min(workers or available_cores(), len(pieces))
    if workers <= 1:
        yield from _here(work, pieces)
        return
    # Never a fork: torch's threads do not survive one.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_set_up)
    try:
        waiting = iter(pieces)
        running = _submitted(pool, work, islice(waiting, AHEAD * workers))
        while running:
            done, running = wait_for(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
                running |= _submitted(pool, work, islice(waiting, 1))
    except BrokenProcessPool as error:
        raise DmgalError(
            f"{workers} worker processes ended before their work",
            received=str(error),
            expected='processes that can import the main script again: its work under if __name__ == "__main__"',
            remedy="guard the script, or use one worker; where they were killed, check the memory and run again",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _submitted(
    pool: ProcessPoolExecutor, work: Callable[[Piece], Result], pieces: Iterable[Piece]
) -> set[Future[Result]]:
    with _one_thread_each(), deaf_to_interrupts():  # a pool starts its processes as pieces come
        return {pool.submit(work, piece) for piece in pieces}


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes that start meanwhile never see Ctrl-C, which a terminal sends to all: the first one ends the others.

    It is blocked rather than ignored, so that one that comes meanwhile reaches this process afterwards.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # multiprocessing's helper, whose start would take the block away
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _here(work: Callable[[Piece], Result], pieces: Sequence[Piece]) -> Iterator[Result]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker; on small tensors more threads only wait for each other
    try:
        yield from map(work, pieces)
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes that start meanwhile have no idle threads for linear algebra, which would be one for every core."""
    before = {name: os.environ.get(name) for name in THREAD_COUNTS}
    os.environ.update(dict.fromkeys(THREAD_COUNTS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _set_up() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for systems where it cannot be blocked from the start
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent is killed would wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
