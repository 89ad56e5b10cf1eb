"""The few-shot task of a gallery: classification of a clip among the enrolled classes, or rejection as unknown.

The task is the whole gallery, or a shortlist of the classes that the head ranks best by the videos' own states. The
threshold on the best logit is the midpoint between mean scores of known and unknown clips of the gallery (our own
method). Known: each clip is held out, or replaced by augmented views in a class with one clip. Views are more similar
than two clips, so the threshold is then strict. Unknown: each clip is compared with the gallery without its class. Both
choices were made on validation classes of moving shapes (``bench/gallery.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...backbones.state import VideoState
from ...errors import DmgalError
from ...progress import progress_bar
from ..evaluation.states import PrecomputedStates, SupportStates, compare_tasks, has_divided_task_layers
from ..recognizer import FewShotRecognizer


class GalleryTask:
    """Comparison of clips with the enrolled clips.

    Args:
        recognizer: in evaluation mode, on the device of the states.
        states: states of the ``S`` enrolled clips from `precompute_states`.
        labels: class of each enrolled clip, ``(S,)`` int64, all of ``0..n_way-1``.
        shortlist: number of classes to compare with. None: all classes.

    Raises:
        DmgalError: the shortlist has less than one class, or would not change the recognizer's logits.
    """

    def __init__(
        self, recognizer: FewShotRecognizer, states: PrecomputedStates, labels: Tensor, shortlist: int | None = None
    ) -> None:
        if getattr(recognizer.head, "transductive", False):
            raise DmgalError(
                "This head cannot recognize the clips of a gallery one by one.",
                received=f"{type(recognizer.head).__name__}, whose answer for a clip depends on the other clips",
                expected="a head that classifies each clip alone",
                remedy="Use another head, such as RidgeProbe.",
            )
        if shortlist is not None:
            _check_shortlist(recognizer, shortlist)
        self.recognizer = recognizer
        self.states = states
        self.labels = labels
        self.shortlist = shortlist

    @property
    def n_way(self) -> int:
        """The number of classes."""
        return int(self.labels.max()) + 1

    @torch.no_grad()
    def logits(self, query: PrecomputedStates) -> Tensor:
        """Return the logits ``(Q, n_way)`` of ``Q`` clips, ``-inf`` for classes that are not on a clip's shortlist."""
        if self.shortlist is None or self.shortlist >= self.n_way:
            return self._compare(self.states.support, self.labels, query.query)
        # support states do not attend to other videos
        first_logits = self.recognizer.head.compare(self.states.support.state, self.labels, query.support.state).logits
        shortlists = first_logits.topk(self.shortlist).indices.sort().values  # (Q, shortlist)
        logits = torch.full_like(first_logits, -torch.inf)
        for index, classes in enumerate(shortlists):
            mask = torch.isin(self.labels, classes)
            labels = torch.searchsorted(classes, self.labels[mask])
            clip = query.query.select(slice(index, index + 1))
            logits[index, classes] = self._compare(self.states.support.select(mask), labels, clip)[0]
        return logits

    def subset(self, mask: Tensor) -> GalleryTask:
        """Return the task of the enrolled clips in a mask ``(S,)``, with the classes renumbered without gaps."""
        labels = self.labels[mask].unique(return_inverse=True)[1]
        return GalleryTask(self.recognizer, self.states.select(mask), labels, self.shortlist)

    def _compare(self, support: SupportStates, labels: Tensor, query: VideoState) -> Tensor:
        return compare_tasks(self.recognizer, support, labels, query, num_tasks=1)[0]


def _check_shortlist(recognizer: FewShotRecognizer, shortlist: int) -> None:
    if shortlist < 1:
        raise DmgalError(
            "The shortlist has no class.",
            received=f"shortlist {shortlist}",
            expected="at least 1, or no shortlist to compare with the whole gallery",
            remedy="Remove --shortlist or increase it.",
        )
    if not has_divided_task_layers(recognizer):
        raise DmgalError(
            "A shortlist would not change the result of this run.",
            received=f"shortlist {shortlist} for a run without a Cmga, or with one that changes support videos",
            expected="no shortlist, so that the clip is compared with all classes",
            remedy="Remove --shortlist.",
        )


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
    task: GalleryTask, views: PrecomputedStates, view_clips: Tensor, most: int = 200, progress: bool = True
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
    bar = progress_bar(clips, progress=progress, desc="threshold", unit="clip", leave=False)
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
