"""Timeline of a long video: overlapping windows merged into segments of one action each.

Time is divided into cells of one stride. A cell gets the action of the window with the highest best logit, among the
windows that cover its middle. Adjacent cells with the same action form a segment. A cell is decided as soon as no later
window can cover it.

The rule was chosen on concatenated videos of moving shapes (validation classes). Means over the windows call nearly
everything unknown, because a window across two actions resembles neither.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

ROUNDING = 1e-9  # seconds


@dataclass(frozen=True)
class WindowScore:
    """The best class of one window with its logit and probability. Times are in seconds."""

    start: float
    end: float
    label: int
    logit: float
    probability: float


@dataclass(frozen=True)
class Segment:
    """One known or unknown action from ``start`` to ``end`` seconds.

    Attributes:
        label: the class. None if no logit reaches the threshold.
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
        threshold: cells with a lower logit are unknown. None: every cell is known.
    """

    def __init__(self, stride: float, threshold: float | None = None) -> None:
        self._stride = stride
        self._threshold = threshold
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
            known = self._threshold is None or best.logit >= self._threshold
            self._append(Segment(start, end, best.label if known else None, best.probability))

    def _append(self, cell: Segment) -> None:
        """Extend the last segment by a cell of the same action, or start a new segment."""
        last = self._segments[-1] if self._segments else None
        if last is None or last.label != cell.label:
            self._segments.append(cell)
            return
        share = (cell.end - cell.start) / (cell.end - last.start)
        probability = last.probability + share * (cell.probability - last.probability)
        self._segments[-1] = replace(last, end=cell.end, probability=probability)
