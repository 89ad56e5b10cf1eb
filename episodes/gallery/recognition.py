"""Recognition of clips and long videos with a gallery.

A long video is cut into overlapping windows, see ``windows``, and each is recognized like a clip. Time is divided into
cells of one stride. A cell gets the action of the window with the highest best logit among the windows that cover its
middle, and adjacent cells with the same action form a segment. This rule was chosen on concatenated validation videos
of moving shapes. Means over the windows call nearly everything unknown, because a window across two actions resembles
neither.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from ..evaluation.states import precompute_states
from .task import GalleryTask, Rejection
from .windows import Window


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
