"""What happens when: overlapping windows merged into segments of one action each.

Time is cut into cells one stride long. A cell shows what the best fitting of the windows over its middle shows, that
with the highest best logit. Neighboring cells of the same action make a segment. A cell is settled as soon as no later
window can cover it.

Chosen on validation classes of moving shapes, laid end to end: means over the windows call nearly everything unknown,
because a window that lies across two actions looks like none.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

ROUNDING = 1e-9  # seconds


@dataclass(frozen=True)
class WindowScore:
    """The best class of one window: its logit and probability; times in seconds."""

    start: float
    end: float
    label: int
    logit: float
    probability: float


@dataclass(frozen=True)
class Segment:
    """One action, or none that is known, from ``start`` to ``end`` seconds.

    Attributes:
        label: of the class; None where no logit reaches the threshold.
        probability: of the class, mean over the segment; of the class that came nearest where none is known.
    """

    start: float
    end: float
    label: int | None
    probability: float


class Timeline:
    """Takes windows in order; ``finish`` gives the segments.

    Args:
        stride: length of a cell, seconds.
        threshold: a cell whose logit is lower shows no known action; None: every cell shows one.
    """

    def __init__(self, stride: float, threshold: float | None = None) -> None:
        self._stride = stride
        self._threshold = threshold
        self._windows: deque[WindowScore] = deque()
        self._segments: list[Segment] = []
        self._cell = 0

    def add(self, window: WindowScore) -> None:
        """One window more, which starts no earlier than those before."""
        while (self._cell + 0.5) * self._stride < window.start - ROUNDING:
            self._settle((self._cell + 1) * self._stride)
        self._windows.append(window)

    def finish(self) -> list[Segment]:
        """All segments, in order; the last one ends with the last window."""
        end = max((window.end for window in self._windows), default=0.0)
        while self._cell * self._stride < end - ROUNDING:
            self._settle(min(end, (self._cell + 1) * self._stride))
        return self._segments

    def _settle(self, end: float) -> None:
        """The next cell, which ends at ``end``: the last one may be shorter."""
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
        last = self._segments[-1] if self._segments else None
        if last is None or last.label != cell.label:
            self._segments.append(cell)
            return
        share = (cell.end - cell.start) / (cell.end - last.start)
        probability = last.probability + share * (cell.probability - last.probability)
        self._segments[-1] = replace(last, end=cell.end, probability=probability)
