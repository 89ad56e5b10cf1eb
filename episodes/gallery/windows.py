"""Overlapping windows of a long video, one per stride, each sampled like a clip.

Only frames of the currently overlapping windows are stored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain

import torch
from torch import Tensor

from ...errors import DmgalError
from ...videos.decoding.clip import uniform_frames
from ...videos.decoding.stream import TimedFrame


@dataclass(frozen=True, eq=False)
class Window:
    """A ``clip (T, 3, size, size)``, uint8, of the seconds from ``start`` to ``end``."""

    start: float
    end: float
    clip: Tensor


LEAST_STRIDE = 0.001
"""Seconds. Shorter strides give more windows than a computer can recognize."""


@dataclass(frozen=True)
class WindowPlan:
    """The positions of the windows: window ``k`` is ``[k * stride, k * stride + seconds)``.

    Args:
        seconds: length of a window.
        stride: distance between the starts of two windows, at most ``seconds``, so that there are no gaps.

    Raises:
        DmgalError: the stride is shorter than ``LEAST_STRIDE`` or longer than a window.
    """

    seconds: float
    stride: float

    def __post_init__(self) -> None:
        if not LEAST_STRIDE <= self.stride <= self.seconds < float("inf"):
            raise DmgalError(
                "A video cannot be cut into these windows.",
                received=f"windows of {self.seconds} s every {self.stride} s",
                expected=f"{LEAST_STRIDE} s <= stride <= window",
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
