"""What a gallery says of clips and of long videos."""

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
    """Of one clip: ``logits (n_way,)``, ``-inf`` off the shortlist; ``threshold`` None: nothing is unknown."""

    logits: Tensor
    threshold: float | None = None

    @property
    def label(self) -> int:
        """The best class."""
        return int(self.logits.argmax())

    @property
    def known(self) -> bool:
        """Whether the best logit reaches the threshold."""
        return self.threshold is None or self.logits.max().item() >= self.threshold

    @property
    def probabilities(self) -> Tensor:
        """``(n_way,)`` float64, the softmax of the logits."""
        return self.logits.double().softmax(0)

    @property
    def margin(self) -> float | None:
        """The best logit less the second best; None in a gallery of one class or on a shortlist of one."""
        best = self.logits[self.logits.isfinite()].double().topk(min(2, int(self.logits.isfinite().sum()))).values
        return (best[0] - best[1]).item() if len(best) > 1 else None


@torch.no_grad()
def recognize_clips(task: GalleryTask, clips: Tensor, threshold: float | None) -> list[Recognition]:
    """Of clips ``(V, T, 3, size, size)`` on any device, in order."""
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
    """The segments of a long video, from its windows in order; ``on_window`` is told of each.

    Only ``batch_size`` windows are held at a time.
    """
    timeline = Timeline(stride, threshold)
    for window, found in _in_batches(task, windows, threshold, batch_size):
        best = found.logits.max().item(), found.probabilities.max().item()
        score = WindowScore(window.start, window.end, found.label, *best)
        timeline.add(score)
        if on_window is not None:
            on_window(score)
    return timeline.finish()


def _in_batches(
    task: GalleryTask, windows: Iterable[Window], threshold: float | None, batch_size: int
) -> Iterator[tuple[Window, Recognition]]:
    iterator, group = iter(windows), list[Window]()
    for window in iterator:
        group.append(window)
        if len(group) == batch_size:
            yield from zip(group, _of_group(task, group, threshold), strict=True)
            group.clear()
    if group:
        yield from zip(group, _of_group(task, group, threshold), strict=True)


def _of_group(task: GalleryTask, group: list[Window], threshold: float | None) -> list[Recognition]:
    return recognize_clips(task, torch.stack([window.clip for window in group]), threshold)
