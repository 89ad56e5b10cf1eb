"""Checks many videos in processes of their own: one that crashes or hangs the decoder is a finding, not an end.

Each process is handed a few videos at a time and answers one by one, so it is known which one a process died of. It is
replaced and the rest goes on. What is in flight is bounded, whatever the number of videos.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path

from ...errors import DmgalError
from ..parallel import deaf_to_interrupts
from ..video import VideoProbe, probe_video
from .video_identity import Stamp, stamp

BATCH = 8  # videos that a process is handed at a time
STARTING_SECONDS = 300.0  # for a process to import what it needs, on a slow disk


@dataclass(frozen=True)
class CheckedVideo:
    """What one video turned out to be.

    Attributes:
        frames: frames that decode, from the first on; 0 where the video cannot be used at all.
        problem: why there are not more; None for a sound video.
        codec, width, height, rotation: as the decoder tells them; None where it could not.
        stamp: of the file before it was decoded: what changes meanwhile is not taken for checked. None where the
            decoder came to no end.
    """

    frames: int
    problem: str | None = None
    codec: str | None = None
    width: int | None = None
    height: int | None = None
    rotation: int | None = None
    stamp: Stamp | None = field(default=None, compare=False)

    def is_bad(self, num_frames: int) -> bool:
        """Whether the video is damaged and fewer than ``num_frames`` of its frames decode."""
        return self.frames < 1 or (self.problem is not None and self.frames < num_frames)


def check_videos(
    paths: Iterable[tuple[int, Path]],
    workers: int,
    seconds_per_video: float,
    probe: Callable[[Path], VideoProbe] = probe_video,
) -> Iterator[tuple[int, CheckedVideo]]:
    """Decode every video to its end; results in the order in which they come, each under the number given with it.

    Args:
        paths: numbers and paths, taken as they are needed.
        workers: processes, at least 1.
        seconds_per_video: a video that takes longer is called bad and its process is ended.
        probe: a function on the top level of a file.

    Raises:
        DmgalError: processes cannot be started.
    """
    waiting = iter(paths)
    pool = [_Process(probe) for _ in range(workers)]
    try:
        while pool:
            for process in [process for process in pool if not process.pending]:
                process.hand_out(list(islice(waiting, BATCH)))
                if not process.pending:
                    process.end()
                    pool.remove(process)
            deadline = min((process.deadline(seconds_per_video) for process in pool), default=0.0)
            ready = wait([process.connection for process in pool], max(0.0, deadline - time.monotonic()))
            for place, process in enumerate(pool):
                if process.connection in ready:
                    result, alive = process.answer()
                elif time.monotonic() > process.deadline(seconds_per_video):
                    result, alive = process.late(seconds_per_video), False
                else:
                    continue
                if result is not None:
                    yield result
                if not alive:
                    pool[place] = process.replaced()
    finally:
        for process in pool:
            process.end()


class _Process:
    """A process that checks videos, and what it was handed and has not answered yet."""

    def __init__(self, probe: Callable[[Path], VideoProbe], pending: Iterable[tuple[int, Path]] = ()) -> None:
        self._probe = probe
        self.pending: deque[tuple[int, Path]] = deque()
        self.connection, theirs = multiprocessing.Pipe()
        self._process = _context().Process(target=_serve, args=(theirs, probe), daemon=True)
        with deaf_to_interrupts():
            self._process.start()
        theirs.close()
        self._ready = False
        self._since = time.monotonic()
        self.hand_out(list(pending))

    def hand_out(self, videos: list[tuple[int, Path]]) -> None:
        self.pending.extend(videos)
        if self._ready:
            self._since = time.monotonic()
        if videos:
            with suppress(OSError):  # it has died; the next answer tells
                self.connection.send([path for _, path in videos])

    def deadline(self, seconds_per_video: float) -> float:
        return self._since + (seconds_per_video if self._ready else STARTING_SECONDS)

    def answer(self) -> tuple[tuple[int, CheckedVideo] | None, bool]:
        """The next result, if any, and whether the process lives."""
        try:
            checked = self.connection.recv()
        except (EOFError, OSError):
            return self._death(), False
        self._since = time.monotonic()
        if not self._ready:
            self._ready = True
            return None, True
        return (self.pending.popleft()[0], checked), True

    def late(self, seconds: float) -> tuple[int, CheckedVideo]:
        """The video that takes too long."""
        if not self._ready:
            raise self._not_started()
        return self.pending.popleft()[0], CheckedVideo(0, f"not decoded within {seconds:g} seconds")

    def replaced(self) -> _Process:
        """A new process for what this one has not answered."""
        self.end()
        return _Process(self._probe, self.pending)

    def end(self) -> None:
        self.connection.close()
        self._process.kill()
        self._process.join()

    def _death(self) -> tuple[int, CheckedVideo] | None:
        self._process.join(STARTING_SECONDS)
        if not self._ready:
            raise self._not_started()
        code = self._process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return (self.pending.popleft()[0], CheckedVideo(0, f"the decoder crashed ({how})")) if self.pending else None

    def _not_started(self) -> DmgalError:
        return DmgalError(
            "the processes that check videos cannot be started",
            received=f"exit code {self._process.exitcode} before the first video",
            expected='processes that can import the main script again: its work under if __name__ == "__main__"',
            remedy="guard the script; where they were killed, check the memory and run again with fewer workers",
        )


def _context() -> ForkServerContext | SpawnContext:
    """Never a fork of this process: torch's threads do not survive one. A server that has only imported what is needed
    forks a new process in no time."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _serve(connection: Connection, probe: Callable[[Path], VideoProbe]) -> None:
    """The work of a process; it ends when the other side of the connection does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for systems where it cannot be blocked from the start
    import torch

    torch.set_num_threads(1)
    try:
        connection.send(None)  # started
        while True:
            for path in connection.recv():
                connection.send(_checked(path, probe))
    except (EOFError, OSError):
        os._exit(0)


def _checked(path: Path, probe: Callable[[Path], VideoProbe]) -> CheckedVideo:
    before = stamp(path)
    return replace(_probed(path, probe), stamp=before)


def _probed(path: Path, probe: Callable[[Path], VideoProbe]) -> CheckedVideo:
    try:
        found = probe(path)
    except DmgalError as error:
        return CheckedVideo(0, _received(error))
    except Exception as error:  # a file must not end the check of a million others: the report tells, by type
        return CheckedVideo(0, f"{type(error).__name__}: {error}")
    return CheckedVideo(found.num_frames, found.problem, found.codec, found.width, found.height, found.rotation)


def _received(error: DmgalError) -> str:
    """What is wrong with the file, out of the four parts of the message."""
    lines = str(error).splitlines()
    received = [line.partition("received: ")[2] for line in lines if line.startswith("  received: ")]
    return received[0] if received else " ".join(lines)
