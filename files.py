"""Files that several processes use: locks, atomic writes, exchange of folders. Also lists of names in messages.

The operating system releases a lock when its process ends, even if the process is killed.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .errors import DmgalError

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def exclusively(lock_file: Path, while_waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock on ``lock_file``, and wait while another process holds it. Forked processes do not inherit it.

    Args:
        lock_file: created if absent. It is never deleted, because deleting it would let two processes in.
        while_waiting: called once before the wait, if another process holds the lock. It may raise an error instead.

    Raises:
        DmgalError: the file system has no locks.
        OSError: the file cannot be created.
    """
    lock = FileLock(lock_file, preserve_lock_file=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        while_waiting()
        lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise DmgalError(
            f"The file {lock_file} cannot be locked.",
            received=str(error),
            expected="a file system with file locks",
            remedy="Use another folder, or mount the file system with locks.",
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give the path of a temporary file to write, which then replaces ``path`` in one step.

    The temporary file is hidden in the same folder and has the same ending. An error deletes it and leaves an existing
    file unchanged.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty dictionary if there is no valid one.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def replace_folder(new: Path, place: Path) -> None:
    """Move the folder ``new`` to ``place`` and delete the previous folder there.

    A kill at any time leaves one of the two complete, at ``place`` or beside it. `complete_folder` finds it.
    """
    if place.exists():
        shutil.rmtree(_aside(place), ignore_errors=True)
        place.rename(_aside(place))
    new.rename(place)
    shutil.rmtree(_aside(place), ignore_errors=True)


def complete_folder(place: Path) -> Path:
    """Return ``place``, or the path of the previous folder if a kill between two renames left only that."""
    return place if place.exists() or not _aside(place).exists() else _aside(place)


def restore_folder(place: Path) -> None:
    """Return the previous folder to ``place`` if a kill left only that, and delete it otherwise."""
    if complete_folder(place) != place:
        _aside(place).rename(place)
    shutil.rmtree(_aside(place), ignore_errors=True)


def _aside(place: Path) -> Path:
    return place.with_name(f".{place.name}.old")


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
