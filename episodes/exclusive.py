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
        if not _try_lock(handle):
            while_waiting()
            while not _try_lock(handle):
                time.sleep(SECONDS_BETWEEN_TRIES)
        yield
    finally:
        os.close(handle)  # gives the lock back


if sys.platform == "win32":
    import msvcrt

    def _try_lock(handle: int) -> bool:
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
