"""The task that a gallery poses: which of its classes does a clip show?

The task is the whole gallery or, where a task layer (a Cmga) relates the videos of a task, perhaps a shortlist: first
the head ranks every class by what each video is by itself, without the attention between videos; then the best
``shortlist`` classes alone are the task.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...backbones.video_state import VideoState
from ...errors import DmgalError
from ..recognizer import FewShotRecognizer
from ..states.sides import PREPARED, compare_tasks, has_divided_task_layers, sides


class GalleryTask:
    """Compares clips with enrolled ones.

    Args:
        recognizer: in evaluation mode, on the device of the states.
        states: of the ``S`` enrolled clips, as `encode_sides` gives them.
        labels: their classes, ``(S,)`` int64, all of ``0..n_way-1``.
        shortlist: compare with this many classes only; None: with all.

    Raises:
        DmgalError: a shortlist of less than one class, or for a recognizer whose logits it would not change.
    """

    def __init__(
        self, recognizer: FewShotRecognizer, states: VideoState, labels: Tensor, shortlist: int | None = None
    ) -> None:
        if shortlist is not None:
            _check_shortlist(recognizer, shortlist)
        self.recognizer = recognizer
        self.states = states
        self.labels = labels
        self.shortlist = shortlist
        self._support = sides(states)[0]

    @property
    def n_way(self) -> int:
        return int(self.labels.max()) + 1

    @torch.no_grad()
    def logits(self, query: VideoState) -> Tensor:
        """From states of ``Q`` clips, ``(Q, n_way)``; ``-inf`` for classes that are not on a clip's shortlist."""
        if self.shortlist is None or self.shortlist >= self.n_way:
            return self._compare(self._support, self.labels, query)
        ranked = self.recognizer.head.compare(_by_itself(self.states), self.labels, _by_itself(query)).logits
        chosen = ranked.topk(self.shortlist).indices.sort().values  # (Q, shortlist)
        logits = torch.full_like(ranked, -torch.inf)
        for place, classes in enumerate(chosen):
            kept = torch.isin(self.labels, classes)
            labels = torch.searchsorted(classes, self.labels[kept])
            one = query.select(slice(place, place + 1))
            logits[place, classes] = self._compare(self._support.select(kept), labels, one)[0]
        return logits

    def keeping(self, kept: Tensor) -> GalleryTask:
        """The task of some of the enrolled clips, by a mask ``(S,)``; classes are numbered anew without gaps."""
        labels = self.labels[kept].unique(return_inverse=True)[1]
        return GalleryTask(self.recognizer, self.states.select(kept), labels, self.shortlist)

    def _compare(self, support: VideoState, labels: Tensor, query: VideoState) -> Tensor:
        return compare_tasks(self.recognizer, support, labels, sides(query)[1], num_tasks=1)[0]


def _by_itself(states: VideoState) -> VideoState:
    """What the head is given of a video that attends to no other, as a support video does not."""
    return VideoState({n.removeprefix(PREPARED): state for n, state in states.items() if n.startswith(PREPARED)})


def _check_shortlist(recognizer: FewShotRecognizer, shortlist: int) -> None:
    if shortlist < 1:
        raise DmgalError(
            "A shortlist needs a class.",
            received=f"shortlist {shortlist}",
            expected="at least 1, or none: the whole gallery",
            remedy="leave --shortlist out, or give more classes",
        )
    if not has_divided_task_layers(recognizer):
        raise DmgalError(
            "A shortlist is of no use to this run.",
            received=f"shortlist {shortlist} for a run without a Cmga, or with one that changes support videos",
            expected="no shortlist: the clip is compared with all classes",
            remedy="leave --shortlist out",
        )
