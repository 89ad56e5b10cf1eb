"""The few-shot task of a gallery: classification of a clip among the enrolled classes, or rejection as unknown.

The task is the whole gallery, or a shortlist of the classes that the head ranks best by the videos' own states.

A clip is unknown if its score is below a threshold (our own method). The score is its largest logit minus an offset of
the class, which is larger for a class of similar clips. So each class has its own threshold. In a gallery with
negatives, the score is the log odds of the enrolled classes against an extra class "other". The clip is then compared
with enrolled clips and negatives in one task. The logits of the answer do not depend on negatives. ``calibration``
finds threshold and offsets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from ...backbones.state import VideoState
from ...errors import DmgalError
from ..evaluation.states import PrecomputedStates, SupportStates, compare_tasks, has_divided_task_layers
from ..recognizer import FewShotRecognizer
from .negatives import Negatives
from .unknown import class_adjusted, known_over_others, largest_logit


class GalleryTask:
    """Comparison of clips with the enrolled clips.

    Args:
        recognizer: in evaluation mode, on the device of the states.
        states: states of the ``S`` enrolled clips from `precompute_states`.
        labels: class of each enrolled clip, ``(S,)`` int64, all of ``0..n_way-1``.
        shortlist: number of classes to compare with. None: all classes.
        negatives: clips of other actions, on the same device. They only count in `scores`.

    Raises:
        DmgalError: the shortlist has less than one class, or would not change the recognizer's logits.
    """

    def __init__(
        self,
        recognizer: FewShotRecognizer,
        states: PrecomputedStates,
        labels: Tensor,
        shortlist: int | None = None,
        negatives: Negatives | None = None,
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
        self.negatives = negatives

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

    def scores(self, query: PrecomputedStates, logits: Tensor, rejection: Rejection | None) -> Tensor:
        """Return the scores ``(Q,)`` that are compared with the threshold of a rejection.

        Args:
            query: states of ``Q`` clips.
            logits: their logits of this task.
            rejection: determines the score. None: the largest logit.
        """
        if rejection is None or rejection.score == "largest logit":  # galleries without held-out clips, and older ones
            return largest_logit(logits)
        if rejection.score == "class-adjusted logit":
            return class_adjusted(logits, logits.new_tensor(rejection.offsets))
        assert rejection.floor is not None
        return known_over_others(*self.logits_beside_negatives(query), rejection.floor)

    @torch.no_grad()
    def logits_beside_negatives(self, query: PrecomputedStates) -> tuple[Tensor, Tensor]:
        """Return the logits ``(Q, n_way)`` and those of negative classes ``(Q, M)``, from one task of both."""
        states, labels = self._beside_negatives
        logits = self._compare(states.support, labels, query.query)
        return logits[:, : self.n_way], logits[:, self.n_way :]

    @cached_property
    def _beside_negatives(self) -> tuple[PrecomputedStates, Tensor]:
        assert self.negatives is not None
        labels = torch.cat([self.labels, self.n_way + self.negatives.labels.to(self.labels.device)])
        return PrecomputedStates.cat([self.states, self.negatives.states]), labels

    def subset(self, mask: Tensor) -> GalleryTask:
        """Return the task of the enrolled clips in a mask ``(S,)``, with the classes renumbered without gaps."""
        labels = self.labels[mask].unique(return_inverse=True)[1]
        return GalleryTask(self.recognizer, self.states.select(mask), labels, self.shortlist, self.negatives)

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
Score = Literal["largest logit", "class-adjusted logit", "log odds to negatives"]


@dataclass(frozen=True)
class Rejection:
    """A threshold and the clips it is based on.

    Attributes:
        threshold: clips with a lower score are unknown.
        source: kind of the known clips.
        known, unknown: number of known and unknown clips.
        known_kept: share of the known clips that pass.
        unknown_accepted: share of the unknown clips that pass. None if there were none.
        shortlist: shortlist of the task that computed the logits.
        score: what is compared with the threshold.
        temperature: probabilities are the softmax of the logits divided by this.
        floor: constant logit of the class "other" beside the negatives. None without negatives.
        offsets: what is subtracted from the logit of each class, ``(n_way,)`` numbers. Empty for other scores.
    """

    threshold: float
    source: Source
    known: int
    unknown: int
    known_kept: float
    unknown_accepted: float | None
    shortlist: int | None = None
    score: Score = "largest logit"
    temperature: float = 1.0
    floor: float | None = None
    offsets: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "offsets", tuple(self.offsets))  # a list in JSON
        numbers = self.threshold, self.temperature, self.floor or 0.0, *self.offsets
        shares = self.known_kept, 0.0 if self.unknown_accepted is None else self.unknown_accepted
        if self.source not in get_args(Source) or not all(0 <= share <= 1 for share in shares):
            raise ValueError("a rejection without the source of its clips and the shares that pass")
        if self.score not in get_args(Score) or not self.temperature > 0 or not all(map(math.isfinite, numbers)):
            raise ValueError("a rejection without a score, threshold and temperature")
        if (self.score == "log odds to negatives") != (self.floor is not None):
            raise ValueError("a floor without negatives, or negatives without a floor")
        if (self.score == "class-adjusted logit") != bool(self.offsets):
            raise ValueError("offsets without their score, or the score without offsets")
