"""When is a clip none of the gallery's actions? A threshold on the best class's logit, found from the gallery itself.

Known clips: each clip of a class with several is held out and recognized by the rest; of a class with one clip,
augmented views of it are recognized instead, which look more alike than two clips do, so the threshold is then strict
and more known clips are called unknown. Unknown clips: each clip, with its whole class left out. The threshold lies
midway between the mean scores of the two. Ours.

Chosen on validation classes of moving shapes (``bench/gallery.py``): the logit of the best class, because the margin
and the probability cannot see that all classes are far away; midway, because the threshold with the fewest errors on so
few clips did no better on others.
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
"""Of a gallery of one class nothing can be left out: then as many known clips pass."""


@dataclass(frozen=True)
class Rejection:
    """A threshold and what it rests on.

    Attributes:
        threshold: a clip whose best logit is lower is unknown.
        source: what the known clips were.
        known, unknown: how many of each there were.
        known_kept: share of the known ones that pass.
        unknown_accepted: share of the unknown ones that pass, too; None where there were none.
        shortlist: of the task that the logits came from.
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
    """The threshold of a gallery.

    Args:
        task: the whole gallery.
        views: states of augmented views of single clips.
        view_clips: which clip each view is of, ``(W,)``.
        most: hold out at most this many clips, spread evenly over the gallery; each is recognized twice.
        progress: show a bar.
    """
    shots = torch.bincount(task.labels)
    clips = _spread(len(task.labels), most)
    held_out = {clip for clip in clips if shots[task.labels[clip]] > 1}
    places = torch.arange(len(task.labels), device=task.labels.device)
    known, unknown = [], []
    bar = tqdm(clips, desc="threshold", unit="clip", leave=False, disable=not progress)
    for clip in bar:
        query = task.states.select(slice(clip, clip + 1))
        if clip in held_out:
            known.append(best_logits(task.keeping(places != clip).logits(query)))
        if len(shots) > 1:
            unknown.append(best_logits(task.keeping(task.labels != task.labels[clip]).logits(query)))
    if len(view_clips):
        known.append(best_logits(task.logits(views)))
    source = _source(bool(held_out), bool(len(view_clips)))
    return _midway(torch.cat(known), torch.cat(unknown) if unknown else None, source, task.shortlist)


def best_logits(logits: Tensor) -> Tensor:
    """What is compared with the threshold; ``(Q, n_way)`` to ``(Q,)``."""
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
    if count <= most:
        return list(range(count))
    return [place * count // most for place in range(most)]


def _source(held_out: bool, views: bool) -> Source:
    if held_out and views:
        return "held-out clips and augmented views"
    return "held-out clips" if held_out else "augmented views"
