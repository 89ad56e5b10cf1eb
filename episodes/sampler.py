"""Samplers that draw the video indices of each episode without decoding any video.

Episode ``i`` depends on the seed and ``i`` only. The number of processes and the order of access do not change it, so
all methods are compared on the same episodes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

import numpy as np
import torch

from ..errors import DmgalError
from ..files import listed
from ..videos.decoding.clip import hashed_seed
from .grouping import Grouping


@dataclass(frozen=True)
class EpisodeIndices:
    """An episode as indices into a catalog, grouped by class.

    Attributes:
        classes: catalog class of each label of the episode, ``(n_way,)``.
        support: support videos, ``(n_way * k_shot,)``.
        support_labels: their labels in ``0..n_way-1``.
        query: query videos, ``(n_way * n_query,)``, disjoint from the support.
        query_labels: their labels in ``0..n_way-1``.
    """

    classes: tuple[int, ...]
    support: tuple[int, ...]
    support_labels: tuple[int, ...]
    query: tuple[int, ...]
    query_labels: tuple[int, ...]


class IndexSampler(Protocol):
    """Any source of episodes, such as an `EpisodeSampler`, `FewerShots` or a list of `EpisodeIndices`."""

    def __len__(self) -> int: ...
    def __getitem__(self, episode: int, /) -> EpisodeIndices: ...


class TaskSampler(ABC):
    """Base class of the samplers: groups videos by class and draws support and query from the chosen classes.

    Args:
        labels: class of every video, ``(V,)``.
        k_shot: support videos per class.
        n_query: query videos per class.
        num_episodes: length of the sampler.
        seed: an episode depends on the seed and its index only.
        class_names: name of each class, for error messages.
        groups: group of every video, ``(V,)``, such as the person that it shows. The support and the queries of an
            episode never share a group. None: no groups.
    """

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray,
        k_shot: int,
        n_query: int,
        num_episodes: int,
        seed: int,
        class_names: Sequence[str] | None = None,
        groups: Sequence[object] | np.ndarray | None = None,
    ) -> None:
        for name, value in (("k_shot", k_shot), ("n_query", n_query), ("num_episodes", num_episodes)):
            if value < 1:
                raise DmgalError(
                    "Cannot sample episodes.",
                    received=f"{name}={value}",
                    expected="at least 1",
                    remedy=f"Set {name} to 1 or more.",
                )
        self.k_shot = k_shot
        self.n_query = n_query
        self.num_episodes = num_episodes
        self.seed = seed
        self._class_names = class_names
        self._videos_of = _videos_by_class(labels)
        self._grouping = None
        if groups is not None:
            self._grouping = Grouping(groups, len(labels), k_shot, n_query, self._name)

    n_way: int
    """Number of classes per episode."""

    @property
    @abstractmethod
    def _num_class_draws(self) -> int:
        """Number of random draws that `_choose_classes` uses."""

    @abstractmethod
    def _choose_classes(self, draws: Iterator[float]) -> list[int]:
        """Return the classes of an episode in the order of its labels."""

    def __len__(self) -> int:
        return self.num_episodes

    def __iter__(self) -> Iterator[EpisodeIndices]:
        return (self[episode] for episode in range(len(self)))

    def __getitem__(self, episode: int) -> EpisodeIndices:
        """Return the episode with this index; raise IndexError unless ``0 <= episode < len(self)``."""
        if not 0 <= episode < len(self):
            raise IndexError(f"episode {episode} of {len(self)}")
        generator = torch.Generator().manual_seed(hashed_seed(self.seed, episode, "episode"))
        count = self._num_class_draws + self.n_way * (self.k_shot + self.n_query)
        # All draws are one call, because calls take most of the time.
        draws = iter(torch.rand(count, generator=generator, dtype=torch.float64).tolist())
        classes = self._choose_classes(draws)
        videos_by_class = self._choose_videos(classes, draws, generator)
        return EpisodeIndices(
            classes=tuple(classes),
            support=tuple(video for videos in videos_by_class for video in videos[: self.k_shot]),
            support_labels=tuple(label for label in range(len(classes)) for _ in range(self.k_shot)),
            query=tuple(video for videos in videos_by_class for video in videos[self.k_shot :]),
            query_labels=tuple(label for label in range(len(classes)) for _ in range(self.n_query)),
        )

    def _choose_videos(
        self, classes: Sequence[int], draws: Iterator[float], generator: torch.Generator
    ) -> list[list[int]]:
        """Return the videos of each class, those of the support first."""
        all_videos = [self._videos_of[c] for c in classes]
        if self._grouping is None:
            return [_pick(videos, self.k_shot + self.n_query, draws) for videos in all_videos]
        sides = self._grouping.sides(classes, all_videos, generator)
        return [_pick(ours, self.k_shot, draws) + _pick(theirs, self.n_query, draws) for ours, theirs in sides]

    def _check_videos(self, classes: Sequence[int]) -> None:
        needed = self.k_shot + self.n_query
        counts = {c: len(self._videos_of.get(c, ())) for c in classes}
        short_classes = [c for c, count in counts.items() if count < needed]
        if short_classes:
            raise DmgalError(
                "Some classes have too few videos for an episode.",
                received=listed([f"{self._name(c)} with {counts[c]}" for c in short_classes]),
                expected=f"at least {needed} videos per class (k_shot {self.k_shot} + n_query {self.n_query})",
                remedy="Lower the shots or queries per class, add videos, or exclude these classes.",
            )
        if self._grouping is not None:
            self._grouping.check(self._videos_of, classes)
            self[0]  # raises if the classes share their groups so that no division is possible

    def _name(self, class_index: int) -> str:
        if self._class_names is not None and 0 <= class_index < len(self._class_names):
            return repr(self._class_names[class_index])
        return f"class {class_index}"


class EpisodeSampler(TaskSampler):
    """Episodes of ``n_way`` random classes with ``k_shot`` support and ``n_query`` query videos of each.

    Args:
        n_way: number of classes per episode.

    The other arguments are those of `TaskSampler`.

    Raises:
        DmgalError: more ways than classes, a class has fewer videos than shots + queries, or the groups cannot be
            divided between support and query.
    """

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray,
        n_way: int,
        k_shot: int,
        n_query: int,
        num_episodes: int,
        seed: int,
        class_names: Sequence[str] | None = None,
        groups: Sequence[object] | np.ndarray | None = None,
    ) -> None:
        super().__init__(labels, k_shot, n_query, num_episodes, seed, class_names, groups)
        self.n_way = n_way
        self._classes = list(self._videos_of)
        if not 2 <= n_way <= len(self._classes):
            raise DmgalError(
                "Cannot sample episodes with this number of ways.",
                received=f"n_way={n_way} and {len(self._classes)} classes",
                expected=f"from 2 to {len(self._classes)} ways",
                remedy="Change n_way, or use a split with more classes.",
            )
        self._check_videos(self._classes)

    @property
    def _num_class_draws(self) -> int:
        return self.n_way

    def _choose_classes(self, draws: Iterator[float]) -> list[int]:
        return [self._classes[index] for index in _choose(len(self._classes), self.n_way, draws)]


class ReversalSampler(TaskSampler):
    """Tasks of classes that are time reversals of each other, so that only the order of frames separates them.

    A model blind to frame order has 50 % accuracy on the two-way tasks of one pair. Appearance may still separate two
    pairs, so such a model cannot exceed 50 % on the four-way tasks of two pairs either.

    Args:
        pairs: classes that are time reversals of each other; a class is in at most one pair.
        num_pairs: pairs per task, usually 1 or 2; a task has ``2 * num_pairs`` ways.

    The other arguments are those of `TaskSampler`.

    Raises:
        DmgalError: too few pairs, a class in two pairs, a class has fewer videos than shots + queries, or the groups
            cannot be divided between support and query.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[int, int]],
        labels: Sequence[int] | np.ndarray,
        k_shot: int,
        n_query: int,
        num_pairs: int,
        num_episodes: int,
        seed: int,
        class_names: Sequence[str] | None = None,
        groups: Sequence[object] | np.ndarray | None = None,
    ) -> None:
        super().__init__(labels, k_shot, n_query, num_episodes, seed, class_names, groups)
        self.n_way = 2 * num_pairs
        self.num_pairs = num_pairs
        self._pairs = [tuple(pair) for pair in pairs]
        classes = [c for pair in self._pairs for c in pair]
        if not 1 <= num_pairs <= len(self._pairs) or len(set(classes)) != len(classes):
            raise DmgalError(
                "Cannot sample tasks of time-reversed classes.",
                received=f"num_pairs={num_pairs} and the pairs {listed([str(pair) for pair in self._pairs])}",
                expected="at least num_pairs pairs of classes, and no class in two of them",
                remedy="Lower num_pairs, or use a data set whose split file has a column 'reversal'.",
            )
        self._check_videos(classes)

    @property
    def _num_class_draws(self) -> int:
        return self.num_pairs + self.n_way

    def _choose_classes(self, draws: Iterator[float]) -> list[int]:
        # shuffled, so that no label always means the forward motion
        pairs = [self._pairs[index] for index in _choose(len(self._pairs), self.num_pairs, draws)]
        classes = [c for pair in pairs for c in pair]
        return [classes[index] for index in _choose(len(classes), len(classes), draws)]


class NovelBesideBase(TaskSampler):
    """Episodes of all base classes, which come first, and of ``num_novel`` random novel classes.

    A query of any of these classes may be recognized as any of them (S. Gidaris and N. Komodakis, CVPR 2018).

    Args:
        base, novel: the classes of both kinds.
        num_novel: novel classes per episode.

    The other arguments are those of `TaskSampler`.

    Raises:
        DmgalError: fewer novel classes than ``num_novel``, no base classes, a class has fewer videos than shots +
            queries, or the groups cannot be divided between support and query.
    """

    def __init__(
        self,
        base: Sequence[int],
        novel: Sequence[int],
        labels: Sequence[int] | np.ndarray,
        num_novel: int,
        k_shot: int,
        n_query: int,
        num_episodes: int,
        seed: int,
        class_names: Sequence[str] | None = None,
        groups: Sequence[object] | np.ndarray | None = None,
    ) -> None:
        super().__init__(labels, k_shot, n_query, num_episodes, seed, class_names, groups)
        if not base or not 1 <= num_novel <= len(novel):
            raise DmgalError(
                "Cannot sample novel classes beside base classes.",
                received=f"{num_novel} of {len(novel)} novel classes beside {len(base)} base classes",
                expected=f"from 1 to {len(novel)} novel classes, and base classes",
                remedy="Change n_way, or use data with base classes.",
            )
        self.n_way = len(base) + num_novel
        self._base, self._novel, self._num_novel = list(base), list(novel), num_novel
        self._check_videos([*base, *novel])

    @property
    def _num_class_draws(self) -> int:
        return self._num_novel

    def _choose_classes(self, draws: Iterator[float]) -> list[int]:
        return [*self._base, *(self._novel[index] for index in _choose(len(self._novel), self._num_novel, draws))]


class FewerShots:
    """The episodes of another sampler with the same queries, and the first support videos of each class.

    Episodes with more shots contain those with fewer, so numbers of shots can be compared by paired differences.

    Args:
        sampler: the episodes with the most shots.
        least, most: each class of an episode has a random number of shots from ``least`` to ``most``. It depends on the
            seed and the index of the episode only.

    Raises:
        DmgalError: not ``1 <= least <= most <= sampler.k_shot``.
    """

    def __init__(self, sampler: TaskSampler, least: int, most: int) -> None:
        if not 1 <= least <= most <= sampler.k_shot:
            raise DmgalError(
                "Cannot reduce the shots of episodes.",
                received=f"{least} to {most} shots of {sampler.k_shot}",
                expected="1 <= least <= most <= shots of the episodes",
                remedy="Correct the numbers of shots.",
            )
        self._sampler, self._least, self._most = sampler, least, most

    def __len__(self) -> int:
        return len(self._sampler)

    def __getitem__(self, episode: int) -> EpisodeIndices:
        """Return the episode with this index; raise IndexError unless ``0 <= episode < len(self)``."""
        full, n_way = self._sampler[episode], self._sampler.n_way
        counts = [self._most] * n_way
        if self._least < self._most:
            generator = torch.Generator().manual_seed(hashed_seed(self._sampler.seed, episode, "shots"))
            counts = torch.randint(self._least, self._most + 1, (n_way,), generator=generator).tolist()
        first = [label * self._sampler.k_shot + shot for label, count in enumerate(counts) for shot in range(count)]
        return replace(
            full,
            support=tuple(full.support[index] for index in first),
            support_labels=tuple(full.support_labels[index] for index in first),
        )


def _pick(videos: np.ndarray, count: int, draws: Iterator[float]) -> list[int]:
    return [int(videos[index]) for index in _choose(len(videos), count, draws)]


def _choose(population: int, count: int, draws: Iterator[float]) -> list[int]:
    """Return ``count`` distinct integers below ``population`` in random order, in ``O(count)`` time and memory.

    This is a Fisher-Yates shuffle that stops after ``count`` steps and stores only the swapped positions.
    """
    swapped: dict[int, int] = {}
    chosen = []
    for step, draw in enumerate(islice(draws, count)):
        index = step + int(draw * (population - step))
        chosen.append(swapped.get(index, index))
        swapped[index] = swapped.get(step, step)
    return chosen


def _videos_by_class(labels: Sequence[int] | np.ndarray) -> dict[int, np.ndarray]:
    """Return the video indices of each class, with classes in ascending order."""
    array = np.asarray(labels, dtype=np.int64)
    order = np.argsort(array, kind="stable")
    classes, starts = np.unique(array[order], return_index=True)
    return dict(zip(classes.tolist(), np.split(order, starts[1:]), strict=False))
