"""Recognition of clips and long videos with a gallery."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..states.sides import encode_sides
from .gallery_task import GalleryTask
from .sliding_windows import Window
from .timeline import Segment, Timeline, WindowScore


@dataclass(frozen=True, eq=False)
class Recognition:
    """The result for one clip.

    Attributes:
        logits: ``(n_way,)``, ``-inf`` for classes that are not on the shortlist.
        threshold: lowest best logit of a known action. None: every action is known.
    """

    logits: Tensor
    threshold: float | None = None

    @property
    def label(self) -> int:
        """The class with the highest logit."""
        return int(self.logits.argmax())

    @property
    def known(self) -> bool:
        """True if the best logit reaches the threshold."""
        return self.threshold is None or self.logits.max().item() >= self.threshold

    @property
    def probabilities(self) -> Tensor:
        """``(n_way,)`` float64, the softmax of the logits."""
        return self.logits.double().softmax(0)

    @property
    def margin(self) -> float | None:
        """The best logit minus the second best. None if the gallery or the shortlist has one class."""
        best = self.logits[self.logits.isfinite()].double().topk(min(2, int(self.logits.isfinite().sum()))).values
        return (best[0] - best[1]).item() if len(best) > 1 else None


@torch.no_grad()
def recognize_clips(task: GalleryTask, clips: Tensor, threshold: float | None) -> list[Recognition]:
    """Recognize clips ``(V, T, 3, size, size)`` on any device and return the results in order."""
    device = task.labels.device
    logits = task.logits(encode_sides(task.recognizer, clips.to(device))).float().cpu()
    return [Recognition(row, threshold) for row in logits]


def recognize_windows(
    task: GalleryTask,
    windows: Iterable[Window],
    threshold: float | None,
    stride: float,
    batch_size: int = 8,
    on_window: Callable[[WindowScore], None] | None = None,
) -> list[Segment]:
    """Return the segments of a long video from its windows, which must be in order.

    ``on_window`` is called with the score of each window. At most ``batch_size`` windows are in memory at a time.
    """
    timeline = Timeline(stride, threshold)
    for window, result in _recognize_in_batches(task, windows, threshold, batch_size):
        logit, probability = result.logits.max().item(), result.probabilities.max().item()
        score = WindowScore(window.start, window.end, result.label, logit, probability)
        timeline.add(score)
        if on_window is not None:
            on_window(score)
    return timeline.finish()


def _recognize_in_batches(
    task: GalleryTask, windows: Iterable[Window], threshold: float | None, batch_size: int
) -> Iterator[tuple[Window, Recognition]]:
    batch: list[Window] = []
    for window in windows:
        batch.append(window)
        if len(batch) == batch_size:
            yield from zip(batch, _recognize_batch(task, batch, threshold), strict=True)
            batch.clear()
    if batch:
        yield from zip(batch, _recognize_batch(task, batch, threshold), strict=True)


def _recognize_batch(task: GalleryTask, batch: list[Window], threshold: float | None) -> list[Recognition]:
    return recognize_clips(task, torch.stack([window.clip for window in batch]), threshold)
