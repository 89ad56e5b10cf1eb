"""Recognition of clips and long videos with a gallery.

A long video is cut into overlapping windows, one per stride, and each window is sampled and recognized like a clip.
Only frames of the currently overlapping windows are stored. Time is divided into cells of one stride. A cell gets the
action of the window with the highest best logit among the windows that cover its middle, and adjacent cells with the
same action form a segment. This rule was chosen on concatenated validation videos of moving shapes. Means over the
windows call nearly everything unknown, because a window across two actions resembles neither.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, islice

import torch
from torch import Tensor

from ...errors import DmgalError
from ...videos.decoding.clip import uniform_frames
from ...videos.decoding.stream import TimedFrame
from ..evaluation.states import precompute_states
from .task import GalleryTask, Rejection


@dataclass(frozen=True, eq=False)
class Recognition:
    """The result for one clip.

    Attributes:
        logits: ``(n_way,)``, ``-inf`` for classes that are not on the shortlist.
        score: how known the action is, see `GalleryTask.scores`.
        threshold: lowest score of a known action. None: every action is known.
        temperature: divisor of the logits in the probabilities.
    """

    logits: Tensor
    score: float
    threshold: float | None = None
    temperature: float = 1.0

    @property
    def label(self) -> int:
        """The class with the highest logit."""
        return int(self.logits.argmax())

    @property
    def known(self) -> bool:
        """True if the score reaches the threshold."""
        return self.threshold is None or self.score >= self.threshold

    @property
    def probabilities(self) -> Tensor:
        """``(n_way,)`` float64, the softmax of the logits divided by the temperature."""
        return (self.logits.double() / self.temperature).softmax(0)

    @property
    def margin(self) -> float | None:
        """The best logit minus the second best. None if the gallery or the shortlist has one class."""
        best = self.logits[self.logits.isfinite()].double().topk(min(2, int(self.logits.isfinite().sum()))).values
        return (best[0] - best[1]).item() if len(best) > 1 else None


@torch.no_grad()
def recognize_clips(
    task: GalleryTask, clips: Tensor, rejection: Rejection | None = None, unknown: bool = True
) -> list[Recognition]:
    """Recognize clips ``(V, T, 3, size, size)`` on any device and return the results in order.

    Args:
        task: the gallery.
        clips: of any device.
        rejection: threshold, score and temperature of the gallery. None: every action is known.
        unknown: if False, every action is known.
    """
    query = precompute_states(task.recognizer, clips.to(task.labels.device))
    logits = task.logits(query)
    scores = task.scores(query, logits, rejection).tolist()
    threshold = rejection.threshold if rejection is not None and unknown else None
    temperature = 1.0 if rejection is None else rejection.temperature
    rows = zip(logits.float().cpu(), scores, strict=True)
    return [Recognition(row, score, threshold, temperature) for row, score in rows]


def recognize_windows(
    task: GalleryTask,
    windows: Iterable[Window],
    rejection: Rejection | None,
    stride: float,
    batch_size: int = 8,
    unknown: bool = True,
    on_window: Callable[[WindowScore], None] | None = None,
) -> list[Segment]:
    """Return the segments of a long video from its windows, which must be in order.

    ``on_window`` is called with the score of each window. At most ``batch_size`` windows are in memory at a time.
    """
    timeline = Timeline(stride)
    for window, result in _recognize_in_batches(task, windows, rejection, batch_size, unknown):
        score = WindowScore.of(window, result)
        timeline.add(score)
        if on_window is not None:
            on_window(score)
    return timeline.finish()


def _recognize_in_batches(
    task: GalleryTask, windows: Iterable[Window], rejection: Rejection | None, batch_size: int, unknown: bool
) -> Iterator[tuple[Window, Recognition]]:
    remaining = iter(windows)
    while batch := list(islice(remaining, batch_size)):
        clips = torch.stack([window.clip for window in batch])
        yield from zip(batch, recognize_clips(task, clips, rejection, unknown), strict=True)
        batch.clear()  # before the next batch is read


@dataclass(frozen=True, eq=False)
class Window:
    """A ``clip (T, 3, size, size)``, uint8, of the seconds from ``start`` to ``end``."""

    start: float
    end: float
    clip: Tensor


@dataclass(frozen=True)
class WindowPlan:
    """The positions of the windows: window ``k`` is ``[k * stride, k * stride + seconds)``.

    Args:
        seconds: length of a window.
        stride: distance between the starts of two windows, at most ``seconds``, so that there are no gaps.

    Raises:
        DmgalError: the length is not positive, or the stride is longer than a window.
    """

    seconds: float
    stride: float

    def __post_init__(self) -> None:
        if not 0 < self.stride <= self.seconds < float("inf"):
            raise DmgalError(
                "A video cannot be cut into these windows.",
                received=f"windows of {self.seconds} s every {self.stride} s",
                expected="0 < stride <= window",
                remedy="Change --window or --stride.",
            )


@dataclass
class _PartialWindow:
    """A window that does not have all of its frames yet."""

    start: Fraction
    frames: list[Tensor]


class WindowCutter:
    """A cutter of windows from frames that are pushed in order.

    Args:
        plan: positions of the windows.
        num_frames: ``T``.
        transform: converts ``(1, 3, H, W)`` to ``(1, 3, size, size)``, both uint8.
    """

    def __init__(self, plan: WindowPlan, num_frames: int, transform: Callable[[Tensor], Tensor]) -> None:
        self._length = Fraction(plan.seconds).limit_denominator(1_000_000)
        self._stride = Fraction(plan.stride).limit_denominator(1_000_000)
        self._num_frames = num_frames
        self._transform = transform
        self._span = self._length / num_frames
        self._partial: deque[_PartialWindow] = deque()
        self._num_opened = 0
        self._num_completed = 0
        self._last_frame: TimedFrame | None = None
        self._last_duration = self._span

    def push(self, time: Fraction, frame: Callable[[], Tensor]) -> Iterator[Window]:
        """Add the frame shown from ``time`` on, and return the windows that its predecessor completed.

        A clip is only assembled when the iterator reaches its window.
        """
        completed: list[_PartialWindow] = []
        if self._last_frame is not None:
            self._last_duration = time - self._last_frame[0]
            completed = self._sample_last_frame(until=time)
        self._last_frame = time, frame
        return map(self._to_window, completed)

    def finish(self) -> Iterator[Window]:
        """Return the remaining windows, see `sliding_windows` for the last one."""
        if self._last_frame is None:
            return iter(())
        time, frame = self._last_frame
        end = time + self._last_duration
        completed = self._sample_last_frame(until=end)
        if not self._num_completed and not self._partial:  # the video is shorter than half a span
            self._partial.append(_PartialWindow(Fraction(0), [self._transform(frame().unsqueeze(0))[0]]))
        windows = map(self._to_window, completed)
        if not self._partial:
            return windows
        rest = self._partial[0]
        if self._num_completed and 2 * len(rest.frames) < self._num_frames:
            return windows
        clip = torch.stack([rest.frames[index] for index in uniform_frames(len(rest.frames), self._num_frames)])
        return chain(windows, [Window(float(rest.start), float(end), clip)])

    def _sample_last_frame(self, until: Fraction) -> list[_PartialWindow]:
        """Give the last frame to every sample before ``until``, and return the completed windows.

        The frame is converted once, and only if a window needs it.
        """
        assert self._last_frame is not None
        while self._num_opened * self._stride + self._span / 2 < until:
            self._partial.append(_PartialWindow(self._num_opened * self._stride, []))
            self._num_opened += 1
        image: Tensor | None = None
        for window in self._partial:
            while len(window.frames) < self._num_frames and self._next_sample_time(window) < until:
                if image is None:
                    image = self._transform(self._last_frame[1]().unsqueeze(0))[0]
                window.frames.append(image)
        completed = []
        while self._partial and len(self._partial[0].frames) == self._num_frames:
            completed.append(self._partial.popleft())
        self._num_completed += len(completed)
        return completed

    def _next_sample_time(self, window: _PartialWindow) -> Fraction:
        return window.start + (2 * len(window.frames) + 1) * self._span / 2

    def _to_window(self, window: _PartialWindow) -> Window:
        return Window(float(window.start), float(window.start + self._length), torch.stack(window.frames))


def sliding_windows(
    frames: Iterable[TimedFrame], plan: WindowPlan, num_frames: int, transform: Callable[[Tensor], Tensor]
) -> Iterator[Window]:
    """Yield the windows of a video in order, each as soon as it is complete.

    The rest at the end becomes a shorter window if it has at least half of its samples, or if it is the only window.
    Its frames are spread over ``T`` like those of a short clip. ``frames`` are all frames of the video, in order. The
    other arguments are those of `WindowCutter`.
    """
    cutter = WindowCutter(plan, num_frames, transform)
    for time, frame in frames:
        yield from cutter.push(time, frame)
    yield from cutter.finish()


ROUNDING = 1e-9  # seconds


@dataclass(frozen=True)
class WindowScore:
    """The best class of one window with its logit and probability. Times are in seconds.

    ``known`` is False if the window's score is below the threshold.
    """

    start: float
    end: float
    label: int
    logit: float
    probability: float
    known: bool = True

    @classmethod
    def of(cls, window: Window, result: Recognition) -> WindowScore:
        """Return the score of a window from the result for its clip."""
        logit, probability = result.logits.max().item(), result.probabilities.max().item()
        return cls(window.start, window.end, result.label, logit, probability, result.known)


@dataclass(frozen=True)
class Segment:
    """One known or unknown action from ``start`` to ``end`` seconds.

    Attributes:
        label: the class. None if the best window is unknown.
        probability: mean probability of the best class over the segment.
    """

    start: float
    end: float
    label: int | None
    probability: float


class Timeline:
    """A merger of windows, added in order, into segments.

    Args:
        stride: length of a cell, seconds.
    """

    def __init__(self, stride: float) -> None:
        self._stride = stride
        self._windows: deque[WindowScore] = deque()
        self._segments: list[Segment] = []
        self._cell = 0

    def add(self, window: WindowScore) -> None:
        """Add a window that does not start before the previous ones."""
        while (self._cell + 0.5) * self._stride < window.start - ROUNDING:
            self._decide_cell((self._cell + 1) * self._stride)
        self._windows.append(window)

    def finish(self) -> list[Segment]:
        """Return all segments in order. The last one ends with the last window."""
        end = max((window.end for window in self._windows), default=0.0)
        while self._cell * self._stride < end - ROUNDING:
            self._decide_cell(min(end, (self._cell + 1) * self._stride))
        return self._segments

    def _decide_cell(self, end: float) -> None:
        """Decide the next cell, which ends at ``end`` and is shorter at the end of the video."""
        start = self._cell * self._stride
        middle = (start + end) / 2
        self._cell += 1
        while self._windows and self._windows[0].end <= middle:
            self._windows.popleft()
        covering = [window for window in self._windows if window.start <= middle < window.end]
        if covering:
            best = max(covering, key=lambda window: window.logit)
            self._append(Segment(start, end, best.label if best.known else None, best.probability))

    def _append(self, cell: Segment) -> None:
        """Extend the last segment by a cell of the same action, or start a new segment."""
        last = self._segments[-1] if self._segments else None
        if last is None or last.label != cell.label:
            self._segments.append(cell)
            return
        share = (cell.end - cell.start) / (cell.end - last.start)
        probability = last.probability + share * (cell.probability - last.probability)
        self._segments[-1] = replace(last, end=cell.end, probability=probability)
