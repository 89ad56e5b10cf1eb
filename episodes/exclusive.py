"""A file lock for one process at a time. The operating system releases it even if its holder is killed."""

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
    """Hold the lock on ``lock_file``, and wait while another process holds it.

    Args:
        lock_file: created if absent. It is never deleted, because deleting it would let two processes in.
        while_waiting: called once before the wait, if another process holds the lock.

    Raises:
        OSError: the file cannot be created.
    """
    handle = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not try_lock(handle):
            while_waiting()
            while not try_lock(handle):
                time.sleep(SECONDS_BETWEEN_TRIES)
        yield
    finally:
        os.close(handle)  # releases the lock


if sys.platform == "win32":
    import msvcrt

    def try_lock(handle: int, of_process: bool = False) -> bool:
        """Lock an open file without waiting and return True on success. On Windows a process always owns its locks."""
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def try_lock(handle: int, of_process: bool = False) -> bool:
        """Lock an open file without waiting and return True on success.

        Args:
            handle: file descriptor of the open file.
            of_process: True if only this process owns the lock; False if forks that inherit the open file share it.
        """
        lock = fcntl.lockf if of_process else fcntl.flock
        try:
            lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True
