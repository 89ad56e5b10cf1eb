"""A file lock for one process at a time. The operating system releases it even if its holder is killed.

Names in a message: the first few, and the number of remaining names.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
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


NAMES_SHOWN = 5


def listed(names: Sequence[str], count: int | None = None) -> str:
    """Return the names as ``a, b, c, d, e and 7 more``, or ``none`` if there are none.

    Args:
        names: all names, or at least the first ``NAMES_SHOWN``.
        count: total number of names; None uses ``len(names)``.
    """
    num_hidden = (len(names) if count is None else count) - NAMES_SHOWN
    text = ", ".join(printable(name) for name in names[:NAMES_SHOWN])
    if num_hidden > 0:
        text += f" and {num_hidden} more"
    return text or "none"


def printable(name: str) -> str:
    """Return a file name that any terminal can print. Bytes that are not valid UTF-8 become ``\\xe9`` and the like."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
