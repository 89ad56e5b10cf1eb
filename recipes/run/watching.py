"""Windows of a live source, of which only the newest waits, and the events in them.

A thread decodes the source and cuts windows. If the model is slower than the stride, a window that waits is replaced by
the next one. So the result lags by at most the time of one window, and memory does not grow. Frames that no recognized
window contains are dropped, and counted. A file is not live: all of its windows are recognized.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import takewhile

from torch import Tensor

from dmgal.episodes.gallery.events import Event, EventDetector, EventRule
from dmgal.episodes.gallery.recognition import WindowScore, recognize_clips
from dmgal.episodes.gallery.windows import Window, WindowCutter, WindowPlan, sliding_windows
from dmgal.recipes.run.recognition import ClipRecognizer
from dmgal.videos.decoding.live import LiveFrame
from dmgal.videos.decoding.stream import TimedFrames

LONGEST_JOIN = 10.0
"""Seconds to wait for the thread at the end. A webcam driver may never return, and the thread ends with the process."""


@dataclass(frozen=True, eq=False)
class LiveWindow:
    """A window and the frames in it.

    Attributes:
        window: the clip and its times.
        first, end: indices of its first frame, and of the frame after its last.
        ready: when it was complete, by ``time.monotonic``.
        is_first: True for the first window after a break.
    """

    window: Window
    first: int
    end: int
    ready: float
    is_first: bool


@dataclass
class WatchCounts:
    """Numbers about a watched source.

    Attributes:
        seconds: time of the last window.
        frames: frames decoded.
        dropped_frames: frames that no recognized window contains.
        windows: windows recognized.
        skipped_windows: windows replaced by newer ones before they were recognized.
        breaks: interruptions of the source.
        longest_delay: most seconds from a complete window to its result.
    """

    seconds: float = 0.0
    frames: int = 0
    dropped_frames: int = 0
    windows: int = 0
    skipped_windows: int = 0
    breaks: int = 0
    longest_delay: float = 0.0


class LiveWindows:
    """Windows of live frames, for one iteration. Use it in a ``with`` statement, which ends its thread.

    Args:
        frames: the source. Its ``close`` ends the iteration.
        plan: positions of the windows, counted from the first frame and from each break.
        num_frames, transform: see `WindowCutter`.
        counts: ``frames``, ``skipped_windows`` and ``breaks`` are updated.
    """

    def __init__(
        self,
        frames: Iterable[LiveFrame],
        plan: WindowPlan,
        num_frames: int,
        transform: Callable[[Tensor], Tensor],
        counts: WatchCounts,
    ) -> None:
        self._frames, self._plan, self._counts = frames, plan, counts
        self._cutter_of: Callable[[], WindowCutter] = lambda: WindowCutter(plan, num_frames, transform)
        self._changed = threading.Condition()
        self._waiting: LiveWindow | None = None
        self._is_over = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="live windows", daemon=True)

    def __enter__(self) -> LiveWindows:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        close = getattr(self._frames, "close", None)
        if close is not None:
            close()
        self._thread.join(LONGEST_JOIN)

    def __iter__(self) -> Iterator[LiveWindow]:
        """Yield the newest window as soon as there is one. Raise the error of the source at its end."""
        while True:
            with self._changed:
                while self._waiting is None and not self._is_over:
                    self._changed.wait(0.2)  # so that Ctrl-C is noticed on every system
                waiting, self._waiting = self._waiting, None
            if waiting is None:
                if self._error is not None:
                    raise self._error
                return
            yield waiting

    def _run(self) -> None:
        try:
            for window in self._cut():
                with self._changed:
                    if self._waiting is not None:
                        self._counts.skipped_windows += 1
                        window = replace(window, is_first=window.is_first or self._waiting.is_first)
                    self._waiting = window
                    self._changed.notify()
        except BaseException as error:  # raised again by the consumer
            self._error = error
        finally:
            with self._changed:
                self._is_over = True
                self._changed.notify()

    def _cut(self) -> Iterator[LiveWindow]:
        cutter, base, is_first = self._cutter_of(), Fraction(0), True
        times: deque[float] = deque()  # of the frames of the current window
        for frame in self._frames:
            if frame.is_first:
                self._counts.breaks += self._counts.frames > 0
                cutter, base, is_first = self._cutter_of(), frame.time, True
                times.clear()
            for window in cutter.push(frame.time - base, frame.read):
                start, end = (round(float(base) + second, 6) for second in (window.start, window.end))
                while times and times[0] < start:
                    times.popleft()
                count = self._counts.frames
                yield LiveWindow(Window(start, end, window.clip), count - len(times), count, time.monotonic(), is_first)
                is_first = False
            times.append(float(frame.time))
            self._counts.frames += 1


@dataclass
class Watcher:
    """A recognizer of the events in windows.

    Args:
        ready: the recognizer of clips.
        plan: positions of the windows.
        rule: when events begin and end.

    Attributes:
        counts: numbers about what was watched.
        on_window: called after each window, with its answer.
    """

    ready: ClipRecognizer
    plan: WindowPlan
    rule: EventRule
    counts: WatchCounts = field(default_factory=WatchCounts)
    on_window: Callable[[Window, WindowScore], None] = lambda window, score: None

    def live(self, frames: Iterable[LiveFrame], on_event: Callable[[Event], None]) -> None:
        """Call ``on_event`` with each event of a live source as it begins and ends, the last one also after an error.

        Raises:
            DmgalError: the source cannot be opened, or was lost.
        """
        of_clip, seen = self.ready.frames, 0
        detector = EventDetector(self.plan, self.rule)
        try:
            with LiveWindows(frames, self.plan, of_clip.num_frames, of_clip.transform, self.counts) as windows:
                for live in windows:
                    events = detector.finish() if live.is_first else iter(())
                    self.counts.dropped_frames += max(0, live.first - seen)
                    seen = max(seen, live.end)
                    for event in (*events, *detector.add(self._score(live.window))):
                        on_event(event)
                    self.counts.longest_delay = max(self.counts.longest_delay, time.monotonic() - live.ready)
        finally:
            for event in detector.finish():
                on_event(event)

    def file(self, frames: TimedFrames, on_event: Callable[[Event], None], seconds: float = float("inf")) -> None:
        """Call ``on_event`` with each event of a file, or of its first ``seconds``. No window is skipped.

        Raises:
            VideoError: the file cannot be read.
        """
        detector, of_clip = EventDetector(self.plan, self.rule), self.ready.frames
        beginning = takewhile(lambda frame: frame[0] < seconds, frames)
        try:
            for window in sliding_windows(beginning, self.plan, of_clip.num_frames, of_clip.transform):
                for event in detector.add(self._score(window)):
                    on_event(event)
        finally:
            self.counts.frames = frames.decoded
            for event in detector.finish():
                on_event(event)

    def _score(self, window: Window) -> WindowScore:
        ready = self.ready
        [result] = recognize_clips(ready.task, window.clip.unsqueeze(0), ready.gallery.rejection, ready.unknown)
        self.counts.windows += 1
        self.counts.seconds = window.end
        score = WindowScore.of(window, result)
        self.on_window(window, score)
        return score
