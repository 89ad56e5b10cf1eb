"""The few-shot task of a gallery: classification of a clip among the enrolled classes.

The task is the whole gallery. If a task layer (a Cmga) relates the videos of a task, it can also be a shortlist. The
head then first ranks all classes by the videos' own states, without attention between videos. The best ``shortlist``
classes form the task.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...backbones.video_state import VideoState
from ...errors import DmgalError
from ..recognizer import FewShotRecognizer
from ..states.sides import PREPARED, compare_tasks, has_divided_task_layers, sides


class GalleryTask:
    """Comparison of clips with the enrolled clips.

    Args:
        recognizer: in evaluation mode, on the device of the states.
        states: states of the ``S`` enrolled clips from `encode_sides`.
        labels: class of each enrolled clip, ``(S,)`` int64, all of ``0..n_way-1``.
        shortlist: number of classes to compare with. None: all classes.

    Raises:
        DmgalError: the shortlist has less than one class, or would not change the recognizer's logits.
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
        """The number of classes."""
        return int(self.labels.max()) + 1

    @torch.no_grad()
    def logits(self, query: VideoState) -> Tensor:
        """Return the logits ``(Q, n_way)`` of ``Q`` clips, ``-inf`` for classes that are not on a clip's shortlist."""
        if self.shortlist is None or self.shortlist >= self.n_way:
            return self._compare(self._support, self.labels, query)
        first_logits = self.recognizer.head.compare(_own_state(self.states), self.labels, _own_state(query)).logits
        shortlists = first_logits.topk(self.shortlist).indices.sort().values  # (Q, shortlist)
        logits = torch.full_like(first_logits, -torch.inf)
        for index, classes in enumerate(shortlists):
            mask = torch.isin(self.labels, classes)
            labels = torch.searchsorted(classes, self.labels[mask])
            clip = query.select(slice(index, index + 1))
            logits[index, classes] = self._compare(self._support.select(mask), labels, clip)[0]
        return logits

    def subset(self, mask: Tensor) -> GalleryTask:
        """Return the task of the enrolled clips in a mask ``(S,)``, with the classes renumbered without gaps."""
        labels = self.labels[mask].unique(return_inverse=True)[1]
        return GalleryTask(self.recognizer, self.states.select(mask), labels, self.shortlist)

    def _compare(self, support: VideoState, labels: Tensor, query: VideoState) -> Tensor:
        return compare_tasks(self.recognizer, support, labels, sides(query)[1], num_tasks=1)[0]


def _own_state(states: VideoState) -> VideoState:
    """Return the head's state of videos that do not attend to other videos, as in the support."""
    return VideoState({n.removeprefix(PREPARED): state for n, state in states.items() if n.startswith(PREPARED)})


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
