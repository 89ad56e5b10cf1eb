"""Calibration of the threshold for unknown actions and of the probabilities, by a gallery's own clips (our own method).

Known: each clip is held out, or replaced by augmented views in a class with one clip. Unknown: each clip is compared
with the gallery without its class. ``KNOWN_KEPT`` of the held-out clips pass, or more if few unknown ones pass anyway.
Views are more similar than two clips. If there are any, the threshold is the midpoint of the mean scores of known and
unknown clips, which is strict. Held-out clips also give the offsets, each of which leaves out the clip it is applied
to, and the temperature of the probabilities. Choices were made on validation data, two of them again after a report on
novel classes (``bench/unknown.py``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...progress import progress_bar
from ..evaluation.states import PrecomputedStates
from .task import GalleryTask, Rejection, Score, Source
from .unknown import class_adjusted, class_offsets, energy, find_temperature, known_over_others, largest_logit

KNOWN_KEPT = 0.85
"""Share of held-out clips that always pass."""
UNKNOWN_ACCEPTED = 0.05
"""Share of unknown clips for which the threshold is not raised further."""
KNOWN_KEPT_WITHOUT_UNKNOWN = 0.95
"""Share of known clips that pass in a gallery of one class, which has no unknown clips."""


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
        class_left_out: True if each enrolled clip is measured without its class, not only without itself.
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
