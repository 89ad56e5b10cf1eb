"""Early end of a training by a signal: it saves within a step and exits with code 75, so that it is requeued.

Schedulers send SIGTERM or SIGUSR1 before they take a machine back. While a step runs or files are written, a signal is
only recorded. At other times it ends the process at once, because everything is already saved.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.util import Finalize
from types import FrameType
from typing import Any

from dmgal.recipes.run.distributed import SIGNALS
from dmgal.recipes.training.launching import is_launched

PREEMPTED = 75
"""Exit code of a temporary failure (EX_TEMPFAIL). The same command with ``--resume`` continues the run."""
SECONDS_BETWEEN_LOOKS = 0.5
GRACE_SECONDS = 60.0
"""Time for a process whose launcher was killed to save and end."""


class Preempted(SystemExit):
    """Exit of the process with code 75. Nothing is lost."""

    def __init__(self, name: str) -> None:
        super().__init__(PREEMPTED)
        self.name = name


class StopSignal:
    """Context that catches the signals. A process whose launcher was killed sends itself SIGTERM.

    Data workers started in the context that still live when Python ends are killed then.

    Attributes:
        requested: name of the received signal, e.g. ``SIGTERM``, or None.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._noting = False
        self._process = os.getpid()
        self._old_handlers: dict[int, Any] = {}
        self._workers = ExitStack()
        self._ended = threading.Event()

    def __enter__(self) -> StopSignal:
        self._workers.enter_context(_workers_end_with_python())
        if threading.current_thread() is threading.main_thread():  # Python allows handlers in this thread only
            self._old_handlers = {number: signal.signal(number, self._handle) for number in SIGNALS}
            if is_launched():
                threading.Thread(target=self._watch_launcher, args=(os.getppid(),), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._workers.close()

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Only record signals in ``requested`` within this context."""
        with self._handling(noting=True):
            yield

    @contextmanager
    def ending(self) -> Iterator[None]:
        """End the process on a signal within this context, or on entry if one was recorded before."""
        with self._handling(noting=False):
            self.check()
            yield

    @contextmanager
    def _handling(self, noting: bool) -> Iterator[None]:
        """Handle signals one way. A signal to the group may kill a worker that has only just started: no error then."""
        was_noting, self._noting = self._noting, noting
        try:
            yield
        except RuntimeError as error:
            if self.requested and str(error).startswith("DataLoader worker"):
                raise Preempted(self.requested) from error
            raise
        finally:
            self._noting = was_noting

    def check(self) -> None:
        """Raise `Preempted` if a signal was received."""
        if self.requested:
            raise Preempted(self.requested)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a forked data worker that has not called `ignore_in_worker` yet
        self.requested = signal.Signals(number).name
        if not self._noting:
            self.check()

    def _watch_launcher(self, launcher: int) -> None:
        """Send SIGTERM to this process when its launcher dies, which otherwise would end it if a peer process fails."""
        while os.getppid() == launcher:
            if self._ended.wait(SECONDS_BETWEEN_LOOKS):
                return
        os.kill(os.getpid(), signal.SIGTERM)
        if not self._ended.wait(GRACE_SECONDS):
            sys.stderr.write("The launcher was killed and another process does not respond. This process ends.\n")
            os._exit(PREEMPTED)


@contextmanager
def _workers_end_with_python() -> Iterator[None]:
    """Kill data workers started in this context if they still live when Python ends.

    A reference, such as the traceback of an error, can keep them alive. They ignore the SIGTERM that Python sends to
    them, and Python would wait for them forever. Python runs the hooks of ``Finalize`` before it waits. A hook stays
    after the context only if it left workers behind.
    """
    others = set(multiprocessing.active_children())

    def living_workers() -> list[object]:
        return [child for child in multiprocessing.active_children() if child.daemon and child not in others]

    hook: Any = Finalize(None, lambda: _kill(living_workers()), exitpriority=100)
    try:
        yield
    finally:
        hook.cancel()
        if workers := living_workers():
            Finalize(None, _kill, args=(workers,), exitpriority=100)


def _kill(workers: list[Any]) -> None:
    for child in multiprocessing.active_children():
        if child in workers:
            child.kill()
