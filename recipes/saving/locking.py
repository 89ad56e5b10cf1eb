"""Lock of a run folder. The system releases it when its process ends for any reason."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dmgal.episodes.exclusive import try_lock
from dmgal.errors import DmgalError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder, the file ``.lock``, which is not deleted.

    The lock belongs to the process, not to the open file. Forked data workers would hold a file lock for seconds after
    their parent was killed.

    Raises:
        DmgalError: another process holds the lock.
        OSError: the file cannot be created.
    """
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not try_lock(handle, of_process=True):
            holder = os.read(handle, 32).decode(errors="replace").strip()
            raise DmgalError(
                "This run folder is in use.",
                received=f"{folder}, where process {holder or 'unknown'} trains",
                expected="a folder that no other process trains in",
                remedy="Wait for that process or end it, or pass another --out.",
            )
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(handle)
