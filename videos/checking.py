"""Checks of many videos in separate processes. A video that crashes or hangs the decoder is recorded as a problem.

Each process receives a few videos at a time and reports their results one by one, so the video that killed it is known.
The dead process is replaced and the check continues. The number of videos in flight is bounded. Each process has a pipe
of its own, because one that dies with the lock of a shared queue would block the others.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path

from ..errors import DmgalError
from ..parallel import deaf_to_interrupts, end_with_parent
from .catalog.files import Stamp, quick_hash, stamp
from .decoding.base import VideoProbe
from .decoding.video import probe_video

FORK_SERVER = f"{__name__.partition('.')[0]}.fork_server"
BATCH = 8  # videos sent to a process at a time
STARTING_SECONDS = 300.0  # time limit for a process to import its modules from a slow disk


@dataclass(frozen=True)
class CheckedVideo:
    """The result of checking one video.

    Attributes:
        frames: number of frames that decode, counted from the first; 0 if the video cannot be used at all.
        problem: the reason why no further frames decode; None for a sound video.
        codec, width, height, rotation: properties reported by the decoder; None if it reported none.
        stamp: stamp of the file before decoding, so that a file that changes meanwhile does not count as checked. None
            if the decoder did not finish.
        content: hash of the content; 0 if the video cannot be used at all.
    """

    frames: int
    problem: str | None = None
    codec: str | None = None
    width: int | None = None
    height: int | None = None
    rotation: int | None = None
    stamp: Stamp | None = field(default=None, compare=False)
    content: int = field(default=0, compare=False)

    def is_bad(self, num_frames: int) -> bool:
        """Return True if the video is damaged and fewer than ``num_frames`` of its frames decode."""
        return self.frames < 1 or (self.problem is not None and self.frames < num_frames)


def check_videos(
    paths: Iterable[tuple[int, Path]],
    workers: int,
    seconds_per_video: float,
    probe: Callable[[Path], VideoProbe] = probe_video,
) -> Iterator[tuple[int, CheckedVideo]]:
    """Decode every video to its end and yield ``(number, result)`` as the results arrive.

    Args:
        paths: numbers and paths of the videos, consumed as needed.
        workers: number of processes, at least 1.
        seconds_per_video: time limit; a slower video is reported as a problem and its process is killed.
        probe: a function at the top level of a module.

    Raises:
        DmgalError: processes cannot be started.
    """
    waiting = iter(paths)
    pool = [_Process(probe) for _ in range(workers)]
    try:
        while pool:
            for process in [process for process in pool if not process.pending]:
                process.send(list(islice(waiting, BATCH)))
                if not process.pending:
                    process.end()
                    pool.remove(process)
            deadline = min((process.deadline(seconds_per_video) for process in pool), default=0.0)
            ready = wait([process.connection for process in pool], max(0.0, deadline - time.monotonic()))
            for index, process in enumerate(pool):
                if process.connection in ready:
                    result, alive = process.receive()
                elif time.monotonic() > process.deadline(seconds_per_video):
                    result, alive = process.time_out(seconds_per_video), False
                else:
                    continue
                if result is not None:
                    yield result
                if not alive:
                    pool[index] = process.replace()
    finally:
        for process in pool:
            process.end()


class _Process:
    """A process that checks videos, with the videos whose results it has not returned yet."""

    def __init__(self, probe: Callable[[Path], VideoProbe], pending: Iterable[tuple[int, Path]] = ()) -> None:
        self._probe = probe
        self.pending: deque[tuple[int, Path]] = deque()
        self.connection, child_connection = multiprocessing.Pipe()
        self._process = _context().Process(target=_serve, args=(child_connection, probe), daemon=True)
        with deaf_to_interrupts():
            self._process.start()
        child_connection.close()
        self._ready = False
        self._last_progress = time.monotonic()
        self.send(list(pending))

    def send(self, videos: list[tuple[int, Path]]) -> None:
        """Send videos to the process."""
        self.pending.extend(videos)
        if self._ready:
            self._last_progress = time.monotonic()
        if videos:
            with suppress(OSError):  # a dead process is detected by the next `receive`
                self.connection.send([path for _, path in videos])

    def deadline(self, seconds_per_video: float) -> float:
        """Return the time at which the process counts as hanging, in seconds of ``time.monotonic``."""
        return self._last_progress + (seconds_per_video if self._ready else STARTING_SECONDS)

    def receive(self) -> tuple[tuple[int, CheckedVideo] | None, bool]:
        """Return the next result, if any, and True if the process is alive."""
        try:
            checked = self.connection.recv()
        except (EOFError, OSError):
            return self._result_of_crash(), False
        self._last_progress = time.monotonic()
        if not self._ready:
            self._ready = True
            return None, True
        return (self.pending.popleft()[0], checked), True

    def time_out(self, seconds: float) -> tuple[int, CheckedVideo]:
        """Return a result for the video that exceeded the time limit."""
        if not self._ready:
            raise self._start_error()
        return self.pending.popleft()[0], CheckedVideo(0, f"not decoded within {seconds:g} seconds")

    def replace(self) -> _Process:
        """End this process and return a new one for its pending videos."""
        self.end()
        return _Process(self._probe, self.pending)

    def end(self) -> None:
        """Kill the process."""
        self.connection.close()
        self._process.kill()
        self._process.join()

    def _result_of_crash(self) -> tuple[int, CheckedVideo] | None:
        self._process.join(STARTING_SECONDS)
        if not self._ready:
            raise self._start_error()
        if not self.pending:
            return None
        code = self._process.exitcode or 0
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return self.pending.popleft()[0], CheckedVideo(0, f"the decoder crashed ({cause})")

    def _start_error(self) -> DmgalError:
        return DmgalError(
            "The processes that check videos cannot be started.",
            received=f"exit code {self._process.exitcode} before the first video",
            expected='processes that can import the main script again: its work under if __name__ == "__main__"',
            remedy="Guard the script. If the processes were killed, check the memory and use fewer workers.",
        )


def _context() -> ForkServerContext | SpawnContext:
    """Return a start method that does not fork this process, because torch's threads do not survive a fork.

    A fork server with preloaded modules starts new processes quickly.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    is_main = threading.current_thread() is threading.main_thread()  # other threads may end before the server
    context.set_forkserver_preload([*([FORK_SERVER] if is_main else []), __name__])
    return context


def _serve(connection: Connection, probe: Callable[[Path], VideoProbe]) -> None:
    """Check the received videos until the other side closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for systems that cannot block the signal from the start
    end_with_parent()  # a video may take a minute
    import torch

    torch.set_num_threads(1)
    try:
        connection.send(None)  # started
        while True:
            for path in connection.recv():
                stamp_before = stamp(path)
                connection.send(replace(_check(path, probe), stamp=stamp_before))
    except (EOFError, OSError):
        os._exit(0)


def _check(path: Path, probe: Callable[[Path], VideoProbe]) -> CheckedVideo:
    try:
        properties = probe(path)
    except DmgalError as error:
        if error.received is None:
            return CheckedVideo(0, " ".join(str(error).splitlines()))
        return CheckedVideo(0, error.received.partition("\n")[0])
    except Exception as error:  # one file must not end the check of all others, so any error becomes a problem
        return CheckedVideo(0, f"{type(error).__name__}: {error}")
    size = properties.width, properties.height
    checked = CheckedVideo(properties.num_frames, properties.problem, properties.codec, *size, properties.rotation)
    return replace(checked, content=quick_hash(path))
