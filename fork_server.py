"""Makes a fork server end with its parent, also while it imports torch: a fork server imports this module first.

By itself, a server looks for its parent only after it has imported all modules. In any other process the import does
nothing.
"""

from __future__ import annotations

import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1  # of Linux' prctl.h


def is_fork_server() -> bool:
    """Return True in a process that multiprocessing has started as a fork server."""
    return sys.argv == ["-c"] and "multiprocessing.forkserver" in sys.modules


def end_with_parent_thread() -> None:
    """Ask Linux to kill this process when the thread that started it ends. The processes it forks are not affected."""
    if sys.platform.startswith("linux"):
        try:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        except (OSError, AttributeError):
            return  # without prctl, the server ends after its imports


if is_fork_server():
    end_with_parent_thread()
