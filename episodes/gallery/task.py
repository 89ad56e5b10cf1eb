"""The few-shot task of a gallery: classification of a clip among the enrolled classes, or rejection as unknown.

The task is the whole gallery, or a shortlist of the classes that the head ranks best by the videos' own states.

A clip is unknown if its score is below a threshold (our own method). The score is its largest logit minus an offset of
the class, which is larger for a class of similar clips. So each class has its own threshold. In a gallery with
negatives, the score is the log odds of the enrolled classes against an extra class "other". The clip is then compared
with enrolled clips and negatives in one task. The logits of the answer do not depend on negatives.

The threshold comes from the gallery's own clips. Known: each clip is held out, or replaced by augmented views in a
class with one clip. Unknown: each clip is compared with the gallery without its class. ``KNOWN_KEPT`` of the held-out
clips pass, or more if few unknown ones pass anyway. Views are more similar than two clips. If there are any, the
threshold is the midpoint of the mean scores of known and unknown clips, which is strict. Held-out clips also give the
offsets, each of which leaves out the clip it is applied to, and the temperature of the probabilities. Choices were made
on validation data, two of them again after a report on novel classes (``bench/unknown.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from ...backbones.state import VideoState
from ...errors import DmgalError
from ...progress import progress_bar
from ..evaluation.states import PrecomputedStates, SupportStates, compare_tasks, has_divided_task_layers
from ..recognizer import FewShotRecognizer
from .negatives import Negatives
from .unknown import class_adjusted, class_offsets, energy, find_temperature, known_over_others, largest_logit


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
KNOWN_KEPT = 0.85
"""Share of held-out clips that always pass."""
UNKNOWN_ACCEPTED = 0.05
"""Share of unknown clips for which the threshold is not raised further."""
KNOWN_KEPT_WITHOUT_UNKNOWN = 0.95
"""Share of known clips that pass in a gallery of one class, which has no unknown clips."""


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
        if self.score not in get_args(Score) or not self.temperature > 0 or not all(map(math.isfinite, numbers)):
            raise ValueError("a rejection without a score, threshold and temperature")
        if (self.score == "log odds to negatives") != (self.floor is not None):
            raise ValueError("a floor without negatives, or negatives without a floor")
        if (self.score == "class-adjusted logit") != bool(self.offsets):
            raise ValueError("offsets without their score, or the score without offsets")


def find_rejection(
    task: GalleryTask, views: PrecomputedStates, view_clips: Tensor, most: int = 200, progress: bool = True
) -> Rejection:
    """Calibrate the threshold and the probabilities of a gallery.

    Args:
        task: the whole gallery.
        views: states of augmented views of single clips.
        view_clips: index of the clip of each view, ``(W,)``.
        most: maximum number of held-out clips, spread evenly over the gallery. Each is recognized twice.
        progress: if True, show a progress bar.
    """
    known, unknown = _hold_out(task, views, view_clips, most, progress)
    shots = torch.bincount(task.labels)
    source = _source(bool((shots > 1).any()), bool(len(view_clips)))
    floor, offsets, labels = None, (), task.labels.cpu()
    score: Score = "largest logit"
    if task.negatives is not None:
        score, floor = "log odds to negatives", _midpoint(known.of_logits(energy), unknown.of_logits(energy))
        known_scores, unknown_scores = known.log_odds(floor), unknown.log_odds(floor)
    elif (own := known.own_logits(labels)).isfinite().any():
        score, offsets = "class-adjusted logit", tuple(class_offsets(own, labels).tolist())
        known_scores, unknown_scores = known.adjusted(own, labels), unknown.adjusted(own, labels)
    else:
        known_scores, unknown_scores = known.of_logits(largest_logit), unknown.of_logits(largest_logit)
    threshold = _threshold(known_scores, unknown_scores, source)
    return Rejection(
        threshold=threshold,
        source=source,
        known=len(known_scores),
        unknown=len(unknown_scores),
        known_kept=_share(known_scores, threshold),
        unknown_accepted=_share(unknown_scores, threshold) if len(unknown_scores) else None,
        shortlist=task.shortlist,
        score=score,
        temperature=_temperature(task, known),
        floor=floor,
        offsets=offsets,
    )


class _Measured:
    """Logits of clips, and those beside negatives if there are any.

    Args:
        class_left_out: whether each enrolled clip was measured without its class, and not only without itself.
    """

    def __init__(self, class_left_out: bool) -> None:
        self._class_left_out = class_left_out
        self._logits: list[Tensor] = []
        self._beside: list[tuple[Tensor, Tensor]] = []
        self._clips: list[int | None] = []

    def add(self, task: GalleryTask, query: PrecomputedStates, clip: int | None = None) -> None:
        """Measure an enrolled clip by its index, or views."""
        self._logits.append(task.logits(query))
        self._clips.append(clip)
        if task.negatives is not None:
            self._beside.append(task.logits_beside_negatives(query))

    @property
    def held_out(self) -> list[tuple[int, Tensor]]:
        """Indices of enrolled clips with their logits, on the CPU."""
        pairs = zip(self._clips, self._logits, strict=True)
        return [(clip, logits[0].double().cpu()) for clip, logits in pairs if clip is not None]

    def own_logits(self, labels: Tensor) -> Tensor:
        """Return the logit ``(S,)`` of each held-out clip for its class, ``nan`` if there is none."""
        own = torch.full(labels.shape, torch.nan, dtype=torch.double)
        for clip, logits in self.held_out:
            own[clip] = logits[labels[clip]]
        return own.masked_fill(own.isinf(), torch.nan)  # not on the shortlist

    def of_logits(self, score: Callable[[Tensor], Tensor]) -> Tensor:
        """Return a score of the logits of each clip, on the CPU."""
        return _concatenated([score(logits) for logits in self._logits])

    def log_odds(self, floor: float) -> Tensor:
        """Return the log odds to negatives of each clip, on the CPU."""
        return _concatenated([known_over_others(*pair, floor) for pair in self._beside])

    def adjusted(self, own: Tensor, labels: Tensor) -> Tensor:
        """Return the class-adjusted logit of each clip with offsets from the others' ``own`` logits, on the CPU."""
        pairs = zip(self._clips, self._logits, strict=True)
        return _concatenated(
            [class_adjusted(logits.double().cpu(), self._offsets(own, labels, clip)) for clip, logits in pairs]
        )

    def _offsets(self, own: Tensor, labels: Tensor, clip: int | None) -> Tensor:
        """Return the offsets for a clip, which see neither it nor its class if that is left out."""
        if clip is None:
            return class_offsets(own, labels)
        if not self._class_left_out:
            return class_offsets(own.masked_fill(torch.arange(len(own)) == clip, torch.nan), labels)
        offsets = class_offsets(own.masked_fill(labels == labels[clip], torch.nan), labels)
        return offsets[torch.arange(len(offsets)) != labels[clip]]


def _concatenated(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.double().cpu() for part in parts]) if parts else torch.empty(0, dtype=torch.double)


def _hold_out(
    task: GalleryTask, views: PrecomputedStates, view_clips: Tensor, most: int, progress: bool
) -> tuple[_Measured, _Measured]:
    """Return the known and the unknown clips."""
    shots = torch.bincount(task.labels)
    clips = _spread(len(task.labels), most)
    indices = torch.arange(len(task.labels), device=task.labels.device)
    known, unknown = _Measured(class_left_out=False), _Measured(class_left_out=True)
    for clip in progress_bar(clips, progress=progress, desc="threshold", unit="clip", leave=False):
        query = task.states.select(slice(clip, clip + 1))
        if shots[task.labels[clip]] > 1:
            known.add(task.subset(indices != clip), query, clip)
        if len(shots) > 1:
            unknown.add(task.subset(task.labels != task.labels[clip]), query, clip)
    if len(view_clips):
        known.add(task, views)
    return known, unknown


def _temperature(task: GalleryTask, known: _Measured) -> float:
    held_out = known.held_out
    if not held_out or (task.shortlist is not None and task.shortlist < task.n_way):
        return 1.0
    clips, logits = zip(*held_out, strict=True)
    return find_temperature(torch.stack(logits), task.labels.cpu()[list(clips)])


def _threshold(known: Tensor, unknown: Tensor, source: Source) -> float:
    if not len(unknown):
        return known.quantile(1 - KNOWN_KEPT_WITHOUT_UNKNOWN).item()
    midpoint = _midpoint(known, unknown)
    if source != "held-out clips":
        return midpoint
    enough = max(midpoint, unknown.quantile(1 - UNKNOWN_ACCEPTED).item())
    return min(enough, known.quantile(1 - KNOWN_KEPT).item())


def _midpoint(known: Tensor, unknown: Tensor) -> float:
    return (known.mean() + (unknown if len(unknown) else known).mean()).item() / 2


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
