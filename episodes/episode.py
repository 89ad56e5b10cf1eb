"""A few-shot task with its videos and labels, its training targets, and a recognizer's output for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from ..errors import DmgalError


@dataclass(frozen=True, eq=False, repr=False)
class Episode:
    """A task: some labeled support videos per class, and query videos of the same classes.

    Classes may have different numbers of shots. The constructor checks the episode once; `to` and `pin_memory` do not
    check their copies again.

    Args:
        support: videos ``(S, T, 3, H, W)``, uint8 in 0..255 or floating point.
        support_labels: ``(S,)`` int64 in ``0..n_way-1``, each at least once.
        query: videos ``(Q, T, 3, H, W)`` with the support's dtype and device.
        query_labels: ``(Q,)`` int64 in ``0..n_way-1``.
        class_names: name of each label, ``(n_way,)``.
        classes: ``(n_way,)`` int64, index of each label's class among all classes that episodes are drawn from (in
            training, the base classes). None if unknown.

    Raises:
        DmgalError: shapes, dtypes or labels are inconsistent.
    """

    support: Tensor
    support_labels: Tensor
    query: Tensor
    query_labels: Tensor
    class_names: tuple[str, ...]
    classes: Tensor | None = None

    def __post_init__(self) -> None:
        _check_videos(self)
        _check_labels("support", self.support, self.support_labels, self.n_way)
        _check_labels("query", self.query, self.query_labels, self.n_way)
        empty_classes = [name for name, shots in zip(self.class_names, self.shots, strict=True) if not shots]
        if empty_classes:
            names = ", ".join(map(repr, empty_classes))
            raise _inconsistent(f"no support video of {names}", "at least one support video of each class")
        if self.classes is not None and (self.classes.dtype, self.classes.shape) != (torch.int64, (self.n_way,)):
            raise _inconsistent(
                f"classes {tuple(self.classes.shape)} {self.classes.dtype}", f"({self.n_way},) {torch.int64}"
            )

    @property
    def n_way(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def shots(self) -> tuple[int, ...]:
        """Number of support videos of each class."""
        return tuple(torch.bincount(self.support_labels, minlength=self.n_way).tolist())

    @property
    def k_shot(self) -> int:
        """Number of support videos per class; raises DmgalError if classes differ (see `shots`)."""
        shots = self.shots
        if len(set(shots)) != 1:
            raise _inconsistent(
                f"shots per class {shots}", "the same number of shots in each class", "Use episode.shots instead."
            )
        return shots[0]

    @property
    def num_support(self) -> int:
        """Number of support videos ``S``."""
        return self.support.shape[0]

    @property
    def num_query(self) -> int:
        """Number of query videos ``Q``, over all classes."""
        return self.query.shape[0]

    @property
    def num_frames(self) -> int:
        """Number of frames per video ``T``."""
        return self.support.shape[1]

    @property
    def targets(self) -> TaskTargets:
        """Targets for a head's own losses in training."""
        if self.classes is None:
            return TaskTargets(self.query_labels)
        return TaskTargets(self.query_labels, self.classes[self.support_labels], self.classes[self.query_labels])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Episode:
        """Return a copy of the episode on another device, with the same dtypes."""
        return self._map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Episode:
        """Return a copy in page-locked memory, so that ``to(device, non_blocking=True)`` overlaps with computation."""
        return self._map_tensors(Tensor.pin_memory)

    def _map_tensors(self, change: Callable[[Tensor], Tensor]) -> Episode:
        copy = object.__new__(Episode)  # __init__ would check the labels again and synchronize with the device
        for entry in fields(self):
            value = getattr(self, entry.name)
            object.__setattr__(copy, entry.name, change(value) if isinstance(value, Tensor) else value)
        return copy

    def __repr__(self) -> str:
        return (
            f"Episode(n_way={self.n_way}, support={tuple(self.support.shape)}, query={tuple(self.query.shape)}, "
            f"dtype={self.support.dtype}, device={self.support.device}, class_names={self.class_names})"
        )


@dataclass(frozen=True, eq=False)
class TaskTargets:
    """Ground truth of a task, for the losses of a head in training.

    Args:
        query_labels: ``(Q,)`` int64 in ``0..n_way-1``.
        support_classes: ``(S,)`` int64, index of each support video's class among the base classes; None if unknown.
        query_classes: ``(Q,)``, the same for the query videos.
    """

    query_labels: Tensor
    support_classes: Tensor | None = None
    query_classes: Tensor | None = None


@dataclass(frozen=True, eq=False)
class EpisodeOutput:
    """Output of a recognizer or a head for an episode.

    Args:
        logits: prediction ``(Q, n_way)``, float32 (float64 for float64 features).
        losses: unweighted scalars by name, present only if the head has losses and received targets. The training loss
            adds them to the cross-entropy of the logits, with the weights in the head's ``loss_weights`` (default 1).
            An entry ``cross_entropy`` replaces the cross-entropy of the logits, for heads that are not trained on
            their prediction.
    """

    logits: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)


def _check_videos(episode: Episode) -> None:
    support, query = episode.support, episode.query
    for name, videos in (("support", support), ("query", query)):
        if videos.ndim != 5 or videos.shape[2] != 3 or 0 in videos.shape:
            raise _inconsistent(
                f"{name} of shape {tuple(videos.shape)}", "(videos, frames, 3, height, width), all above 0"
            )
    if support.shape[1:] != query.shape[1:] or (support.dtype, support.device) != (query.dtype, query.device):
        raise _inconsistent(
            f"support {tuple(support.shape)} {support.dtype} on {support.device}, "
            f"query {tuple(query.shape)} {query.dtype} on {query.device}",
            "videos of the same frames, size, dtype and device",
            "Apply the same transform to all videos of an episode.",
        )


def _check_labels(name: str, videos: Tensor, labels: Tensor, n_way: int) -> None:
    if labels.dtype != torch.int64 or labels.shape != videos.shape[:1] or labels.device != videos.device:
        raise _inconsistent(
            f"{name}_labels {tuple(labels.shape)} {labels.dtype} on {labels.device}",
            f"({videos.shape[0]},) {torch.int64} on {videos.device}: one label per {name} video",
        )
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= n_way:
        raise _inconsistent(
            f"{name}_labels from {lowest} to {highest} for {n_way} class names", f"labels from 0 to {n_way - 1}"
        )


def _inconsistent(
    received: str, expected: str, remedy: str = "Fix the code or sampler that builds the episode."
) -> DmgalError:
    return DmgalError("The parts of an episode are inconsistent.", received=received, expected=expected, remedy=remedy)
