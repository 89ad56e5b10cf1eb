"""One training at a time in a run folder: a lock that the system takes back however its holder ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dmgal.episodes.exclusive import try_lock
from dmgal.errors import DmgalError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a run folder, a file ``.lock`` that stays behind.

    A lock of the process and not of the open file: processes that load data are forks, and would keep the latter for
    the seconds in which they find out that their parent was killed.

    Raises:
        DmgalError: another process holds it.
        OSError: the file cannot be made.
    """
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not try_lock(handle, of_process=True):
            holder = os.read(handle, 32).decode(errors="replace").strip()
            raise DmgalError(
                "This run folder is in use.",
                received=f"{folder}, where process {holder or 'unknown'} trains",
                expected="a folder that no other process trains in",
                remedy="wait for it or end it, or pass another --out",
            )
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(handle)
