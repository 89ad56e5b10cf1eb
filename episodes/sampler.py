"""Which videos make up episode ``i``: indices only, nothing is decoded.

Episode ``i`` is a function of the seed and ``i`` alone. Whatever the number of processes, and in whatever order they
ask, it has the same content, so that methods are compared on the same episodes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice

import numpy as np
import torch

from ..errors import DmgalError
from .listing import listed


def hashed_seed(*numbers: int | str) -> int:
    """64 bits that depend on all of the numbers and their order; neighbors give unrelated seeds."""
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class EpisodeIndices:
    """An episode as places in a catalog, class by class.

    Attributes:
        classes: the catalog's class of each of the episode's labels, ``(n_way,)``.
        support: videos, ``(n_way * k_shot,)``; ``support_labels`` their labels in ``0..n_way-1``.
        query: videos, ``(n_way * n_query,)``, none of them in the support; ``query_labels`` their labels.
    """

    classes: tuple[int, ...]
    support: tuple[int, ...]
    support_labels: tuple[int, ...]
    query: tuple[int, ...]
    query_labels: tuple[int, ...]


class TaskSampler(ABC):
    """What all samplers share: the videos of each class, and drawing support and query from chosen classes.

    Args:
        labels: class of every video, ``(V,)``.
        k_shot: support videos per class.
        n_query: query videos per class.
        num_episodes: length of the sampler.
        seed: with the same seed the episodes are the same.
        class_names: names for messages, by class.
    """

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray,
        k_shot: int,
        n_query: int,
        num_episodes: int,
        seed: int,
        class_names: Sequence[str] | None = None,
    ) -> None:
        for name, value in (("k_shot", k_shot), ("n_query", n_query), ("num_episodes", num_episodes)):
            if value < 1:
                raise DmgalError(
                    "cannot sample episodes",
                    received=f"{name}={value}",
                    expected="at least 1",
                    remedy=f"set {name} to 1 or more",
                )
        self.k_shot = k_shot
        self.n_query = n_query
        self.num_episodes = num_episodes
        self.seed = seed
        self._class_names = class_names
        self._videos_of = _videos_by_class(labels)

    n_way: int
    """Classes of an episode."""

    @property
    @abstractmethod
    def _num_class_draws(self) -> int:
        """How many draws `_choose_classes` takes."""

    @abstractmethod
    def _choose_classes(self, draws: Iterator[float]) -> list[int]:
        """The classes of an episode, in the order of its labels."""

    def __len__(self) -> int:
        return self.num_episodes

    def __iter__(self) -> Iterator[EpisodeIndices]:
        return (self[episode] for episode in range(len(self)))

    def __getitem__(self, episode: int) -> EpisodeIndices:
        """Episode ``0 <= episode < len(self)``; IndexError outside."""
        if not 0 <= episode < len(self):
            raise IndexError(f"episode {episode} of {len(self)}")
        generator = torch.Generator().manual_seed(hashed_seed(self.seed, episode, "episode"))
        count = self._num_class_draws + self.n_way * (self.k_shot + self.n_query)
        draws = iter(torch.rand(count, generator=generator, dtype=torch.float64).tolist())  # one call: they cost most
        classes = self._choose_classes(draws)
        drawn = [self._choose_videos(self._videos_of[c], draws) for c in classes]
        return EpisodeIndices(
            classes=tuple(classes),
            support=tuple(video for videos in drawn for video in videos[: self.k_shot]),
            support_labels=tuple(label for label in range(len(classes)) for _ in range(self.k_shot)),
            query=tuple(video for videos in drawn for video in videos[self.k_shot :]),
            query_labels=tuple(label for label in range(len(classes)) for _ in range(self.n_query)),
        )

    def _choose_videos(self, videos: np.ndarray, draws: Iterator[float]) -> list[int]:
        return [int(videos[place]) for place in _choose(len(videos), self.k_shot + self.n_query, draws)]

    def _check_videos(self, classes: Sequence[int]) -> None:
        needed = self.k_shot + self.n_query
        counts = {c: len(self._videos_of.get(c, ())) for c in classes}
        short = [c for c, count in counts.items() if count < needed]
        if short:
            raise DmgalError(
                "some classes have too few videos for an episode",
                received=listed([f"{self._name(c)} with {counts[c]}" for c in short]),
                expected=f"at least {needed} videos per class (k_shot {self.k_shot} + n_query {self.n_query})",
                remedy="lower the shots or the queries per class, add videos, or leave these classes out",
            )

    def _name(self, class_index: int) -> str:
        known = self._class_names is not None and 0 <= class_index < len(self._class_names)
        return repr(self._class_names[class_index]) if known else f"class {class_index}"  # type: ignore[index]


class EpisodeSampler(TaskSampler):
    """Episodes of ``n_way`` random classes with ``k_shot`` support and ``n_query`` query videos of each.

    Args:
        labels: class of every video, ``(V,)``.
        n_way: classes of an episode.
        k_shot, n_query: support and query videos per class.
        num_episodes: length of the sampler.
        seed: episodes are a function of it and their number.
        class_names: names for messages, by class.

    Raises:
        DmgalError: more ways than classes, or a class with fewer videos than shots + queries.
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
    ) -> None:
        super().__init__(labels, k_shot, n_query, num_episodes, seed, class_names)
        self.n_way = n_way
        self._classes = list(self._videos_of)
        if not 2 <= n_way <= len(self._classes):
            raise DmgalError(
                "cannot sample episodes with this number of ways",
                received=f"n_way={n_way} and {len(self._classes)} classes",
                expected=f"from 2 to {len(self._classes)} ways",
                remedy="change n_way, or use a split with more classes",
            )
        self._check_videos(self._classes)

    @property
    def _num_class_draws(self) -> int:
        return self.n_way

    def _choose_classes(self, draws: Iterator[float]) -> list[int]:
        return [self._classes[place] for place in _choose(len(self._classes), self.n_way, draws)]


class ReversalSampler(TaskSampler):
    """Tasks that only the arrow of time decides: classes that are each other's time reversal.

    One pair gives two-way tasks, where a model blind to the order of frames is right half of the time. Appearance may
    still tell two pairs apart, so such a model cannot pass 50 % of four-way tasks of two pairs either.

    Args:
        pairs: classes that are time reversals of each other; no class in two pairs.
        labels: class of every video, ``(V,)``.
        k_shot, n_query: support and query videos per class.
        num_pairs: pairs of a task, usually 1 or 2; a task has twice as many ways.
        num_episodes: length of the sampler.
        seed: episodes are a function of it and their number.
        class_names: names for messages, by class.

    Raises:
        DmgalError: too few pairs, a class in two pairs, or a class with fewer videos than shots + queries.
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
    ) -> None:
        super().__init__(labels, k_shot, n_query, num_episodes, seed, class_names)
        self.n_way = 2 * num_pairs
        self.num_pairs = num_pairs
        self._pairs = [tuple(pair) for pair in pairs]
        classes = [c for pair in self._pairs for c in pair]
        if not 1 <= num_pairs <= len(self._pairs) or len(set(classes)) != len(classes):
            raise DmgalError(
                "cannot sample tasks of time-reversed classes",
                received=f"num_pairs={num_pairs} and the pairs {listed([str(pair) for pair in self._pairs])}",
                expected="at least num_pairs pairs of classes, and no class in two of them",
                remedy="lower num_pairs, or use a data set whose split file has a column 'reversal'",
            )
        self._check_videos(classes)

    @property
    def _num_class_draws(self) -> int:
        return self.num_pairs + self.n_way

    def _choose_classes(self, draws: Iterator[float]) -> list[int]:
        # the order is drawn too, so that no label stands for the forward motion
        classes = [c for place in _choose(len(self._pairs), self.num_pairs, draws) for c in self._pairs[place]]
        return [classes[place] for place in _choose(len(classes), len(classes), draws)]


def _choose(population: int, count: int, draws: Iterator[float]) -> list[int]:
    """``count`` different numbers below ``population`` in random order, at a cost that grows with ``count`` only.

    A Fisher-Yates shuffle stopped after ``count`` steps, which remembers only the places that were swapped.
    """
    moved: dict[int, int] = {}
    chosen = []
    for step, draw in enumerate(islice(draws, count)):
        place = step + int(draw * (population - step))
        chosen.append(moved.get(place, place))
        moved[place] = moved.get(step, step)
    return chosen


def _videos_by_class(labels: Sequence[int] | np.ndarray) -> dict[int, np.ndarray]:
    """Places of the videos of each class, classes in rising order."""
    array = np.asarray(labels, dtype=np.int64)
    order = np.argsort(array, kind="stable")
    classes, starts = np.unique(array[order], return_index=True)
    return dict(zip(classes.tolist(), np.split(order, starts[1:]), strict=False))
