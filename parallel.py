"""A function applied to many pieces in several processes.

This module imports nothing heavy. A new worker process thus notices the end of its parent before it imports torch.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import TypeVar

from .errors import DmgalError

AHEAD = 4  # pieces in flight for each worker, which bounds the memory of results that wait for the caller
MOST_PROCESSES = 61 if os.name == "nt" else 2**15  # ProcessPoolExecutor raises an error for more on Windows
THREAD_COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # read once, when numpy is imported

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def completed(work: Callable[[Piece], Result], pieces: Sequence[Piece], workers: int | None) -> Iterator[Result]:
    """Yield the results in order of completion. The first error ends all work.

    Args:
        work: a function at the top level of a module, or a partial of one, because new processes import it.
        pieces: arguments of the calls.
        workers: number of processes; None uses one per available core, and 1 works in this process.

    Raises:
        DmgalError: the processes could not start, or were killed.
    """
    workers = min(workers or available_cores(), len(pieces), MOST_PROCESSES)
    if workers <= 1:
        yield from _run_in_this_process(work, pieces)
        return
    # Spawn, because torch's threads do not survive a fork.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_set_up_worker)
    try:
        waiting = iter(pieces)
        running = _submit(pool, work, islice(waiting, AHEAD * workers))
        while running:
            done, running = wait_for(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
                running |= _submit(pool, work, islice(waiting, 1))
    except BrokenProcessPool as error:
        raise DmgalError(
            f"The {workers} worker processes ended before their work.",
            received=str(error),
            expected='processes that can import the main script again: its work under if __name__ == "__main__"',
            remedy="Guard the script, or use one worker. If the processes were killed, check the memory and run again.",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, work: Callable[[Piece], Result], pieces: Iterable[Piece]) -> set[Future[Result]]:
    single_threaded = environment_variables(dict.fromkeys(THREAD_COUNTS, "1"))
    with single_threaded, deaf_to_interrupts():  # the pool starts its processes on submission
        return {pool.submit(work, piece) for piece in pieces}


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Start processes that never receive Ctrl-C, which a terminal sends to all. The main process ends the others.

    SIGINT is blocked rather than ignored, so that an interrupt in this context reaches this process afterward.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # starting this helper of multiprocessing later would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with _interrupts_deferred():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Handle SIGINT after the context. Another thread, which does not block it, may receive it meanwhile."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    received: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received:
            signal.raise_signal(signal.SIGINT)


def _run_in_this_process(work: Callable[[Piece], Result], pieces: Sequence[Piece]) -> Iterator[Result]:
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # same as in a worker; more threads do not speed up small tensors
    try:
        yield from map(work, pieces)
    finally:
        torch.set_num_threads(num_threads)


@contextmanager
def environment_variables(settings: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables within the context, and restore their values after it."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _set_up_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for systems that cannot block the signal from the start
    end_with_parent()
    import torch

    torch.set_num_threads(1)


def end_with_parent() -> None:
    """Watch the parent in a thread and end this worker process as soon as the parent ends, also if it is killed."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
