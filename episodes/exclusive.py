"""One process at a time: a lock on a file, which the system takes back however its holder ends."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS_BETWEEN_TRIES = 0.2


@contextmanager
def exclusively(lock_file: Path, while_waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock on ``lock_file`` (made where absent, left where it is); wait for whoever holds it.

    Args:
        lock_file: stays behind empty: who deletes it would let two in.
        while_waiting: called once, before the wait, where another process holds the lock.

    Raises:
        OSError: the file cannot be made.
    """
    handle = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not try_lock(handle):
            while_waiting()
            while not try_lock(handle):
                time.sleep(SECONDS_BETWEEN_TRIES)
        yield
    finally:
        os.close(handle)  # gives the lock back


if sys.platform == "win32":
    import msvcrt

    def try_lock(handle: int, of_process: bool = False) -> bool:
        """See below; here a lock is that of the process in any case."""
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def try_lock(handle: int, of_process: bool = False) -> bool:
        """Whether an open file could be locked at once: for whoever holds the file open, forks too, or one process."""
        lock = fcntl.lockf if of_process else fcntl.flock
        try:
            lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True
