"""How a training is told to end early: it saves within a step and leaves with exit code 75, so that it is requeued.

SIGTERM and SIGUSR1 are what schedulers send before they take a machine back. While a step runs or files are written a
signal is only noted; elsewhere it ends the process at once, because everything is saved then.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.util import Finalize
from types import FrameType
from typing import Any

from dmgal.recipes.training.launching import is_launcher

PREEMPTED = 75
"""The exit code: a temporary failure (EX_TEMPFAIL); the same command with ``--resume`` goes on."""
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
SECONDS_BETWEEN_LOOKS = 0.5
GRACE_SECONDS = 60.0
"""For a process whose launcher was killed, to save and end."""


class Preempted(SystemExit):
    """Ends the process with exit code 75; nothing is lost."""

    def __init__(self, name: str) -> None:
        super().__init__(PREEMPTED)
        self.name = name


class StopSignal:
    """Catches the signals while it is entered; a process whose launcher was killed sends itself SIGTERM.

    Attributes:
        requested: name of the signal that came, e.g. ``SIGTERM``.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._noting = False
        self._process = os.getpid()
        self._before: dict[int, Any] = {}
        self._ended = threading.Event()

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers in no other
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
            parent = os.getppid()
            if is_launcher(parent):
                threading.Thread(target=self._watch_launcher, args=(parent,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Within it a signal is noted in ``requested`` and nothing else."""
        before, self._noting = self._noting, True
        try:
            yield
        finally:
            self._noting = before

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Within it a signal ends the process, also one that was noted before."""
        before, self._noting = self._noting, False
        try:
            self.check()
            yield
        finally:
            self._noting = before

    def check(self) -> None:
        """Preempted, where a signal came."""
        if self.requested:
            raise Preempted(self.requested)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a fork that will load data, and has not come to `ignore_in_worker`
        self.requested = signal.Signals(number).name
        if not self._noting:
            self.check()

    def _watch_launcher(self, launcher: int) -> None:
        """Without its launcher a process is an orphan: nobody would end it when its peers die."""
        while os.getppid() == launcher:
            if self._ended.wait(SECONDS_BETWEEN_LOOKS):
                return
        os.kill(os.getpid(), signal.SIGTERM)
        if not self._ended.wait(GRACE_SECONDS):
            sys.stderr.write("the launcher was killed, and this process waits for others in vain: it ends\n")
            os._exit(PREEMPTED)


def ignore_in_worker(_: int) -> None:
    """For processes that load data: a signal to the whole group is for the training process, which ends them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _kill_workers() -> None:
    """Those that somebody still holds on to when Python ends, as the traceback of an error does.

    They ignore the signal that Python ends them with, and it would wait for them without end.
    """
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


Finalize(None, _kill_workers, exitpriority=100)  # type: ignore[no-untyped-call]
