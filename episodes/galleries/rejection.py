"""Rejection of unknown actions: a threshold on the best class's logit, calibrated on the gallery itself.

Known clips: each clip of a class with several clips is held out and compared with the rest. A class with one clip uses
augmented views of it instead. Views are more similar than two clips, so the threshold is then strict and rejects more
known clips. Unknown clips: each clip is compared with the gallery without its class. The threshold is the midpoint of
the two mean scores. Our own method.

Both choices were made on validation classes of moving shapes (``bench/gallery.py``). The margin and the probability do
not show that all classes are far away, but the logit of the best class does. The threshold with the fewest errors on so
few clips was not better on other clips than the midpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from ...backbones.video_state import VideoState
from .gallery_task import GalleryTask

Source = Literal["held-out clips", "augmented views", "held-out clips and augmented views"]
KNOWN_KEPT_WITHOUT_UNKNOWN = 0.95
"""Share of known clips that pass in a gallery of one class, which has no unknown clips."""


@dataclass(frozen=True)
class Rejection:
    """A threshold and the clips it is based on.

    Attributes:
        threshold: clips with a lower best logit are unknown.
        source: kind of the known clips.
        known, unknown: number of known and unknown clips.
        known_kept: share of the known clips that pass.
        unknown_accepted: share of the unknown clips that pass. None if there were none.
        shortlist: shortlist of the task that computed the logits.
    """

    threshold: float
    source: Source
    known: int
    unknown: int
    known_kept: float
    unknown_accepted: float | None
    shortlist: int | None = None


def find_rejection(
    task: GalleryTask,
    views: VideoState,
    view_clips: Tensor,
    most: int = 200,
    progress: bool = True,
) -> Rejection:
    """Calibrate the threshold of a gallery.

    Args:
        task: the whole gallery.
        views: states of augmented views of single clips.
        view_clips: index of the clip of each view, ``(W,)``.
        most: maximum number of held-out clips, spread evenly over the gallery. Each is recognized twice.
        progress: if True, show a progress bar.
    """
    shots = torch.bincount(task.labels)
    clips = _spread(len(task.labels), most)
    held_out = {clip for clip in clips if shots[task.labels[clip]] > 1}
    indices = torch.arange(len(task.labels), device=task.labels.device)
    known, unknown = [], []
    bar = tqdm(clips, desc="threshold", unit="clip", leave=False, disable=not progress)
    for clip in bar:
        query = task.states.select(slice(clip, clip + 1))
        if clip in held_out:
            known.append(best_logits(task.subset(indices != clip).logits(query)))
        if len(shots) > 1:
            unknown.append(best_logits(task.subset(task.labels != task.labels[clip]).logits(query)))
    if len(view_clips):
        known.append(best_logits(task.logits(views)))
    source = _source(bool(held_out), bool(len(view_clips)))
    return _midway(torch.cat(known), torch.cat(unknown) if unknown else None, source, task.shortlist)


def best_logits(logits: Tensor) -> Tensor:
    """Return the scores ``(Q,)`` that are compared with the threshold, from logits ``(Q, n_way)``."""
    return logits.max(dim=1).values


def _midway(known: Tensor, unknown: Tensor | None, source: Source, shortlist: int | None) -> Rejection:
    known = known.double().cpu()
    if unknown is None:
        threshold = known.quantile(1 - KNOWN_KEPT_WITHOUT_UNKNOWN).item()
        return Rejection(threshold, source, len(known), 0, _share(known, threshold), None, shortlist)
    unknown = unknown.double().cpu()
    threshold = (known.mean() + unknown.mean()).item() / 2
    shares = _share(known, threshold), _share(unknown, threshold)
    return Rejection(threshold, source, len(known), len(unknown), *shares, shortlist)


def _share(scores: Tensor, threshold: float) -> float:
    return (scores >= threshold).double().mean().item()


def _spread(count: int, most: int) -> list[int]:
    """Return at most ``most`` indices, spread evenly over ``range(count)``."""
    if count <= most:
        return list(range(count))
    return [index * count // most for index in range(most)]


def _source(held_out: bool, views: bool) -> Source:
    if held_out and views:
        return "held-out clips and augmented views"
    return "held-out clips" if held_out else "augmented views"
