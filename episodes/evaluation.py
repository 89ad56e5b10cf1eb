"""Accuracy over episodes: every video is encoded once, then any number of tasks is answered from the states.

Exact, because nothing of a task is in what is kept of a video. The same seeded episodes are used for every method, so
two methods are compared by their difference episode by episode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..backbones.video_state import VideoState
from .recognizer import FewShotRecognizer
from .sampler import EpisodeIndices, TaskSampler
from .states.pair_scores import TABLE_GAIN, look_up, pair_table, why_no_pair_scores
from .states.sides import check_states_can_be_kept, compare_tasks, encode_sides, sides, videos_at_a_time

TASKS_AT_A_TIME = 64
BYTES_AT_A_TIME = 2**25
"""Of the states of the tasks that are answered at a time; more was not faster, as it leaves the processor's cache."""
LOOK_EVERY = 1000
"""Episodes between two looks at the interval, where a half-width is wished for."""


@dataclass(frozen=True)
class Estimate:
    """A mean in percent with the half-width of its 95 % interval over episodes (one trained model, these classes)."""

    mean: float
    half_width: float

    @staticmethod
    def of(values: Tensor) -> Estimate:
        """From one value per episode in ``[-1, 1]``."""
        values = 100 * values.double()
        spread = values.std().item() if len(values) > 1 else math.inf
        return Estimate(values.mean().item(), 1.96 * spread / math.sqrt(len(values)))

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.half_width:.1f}"


@dataclass(frozen=True)
class Answers:
    """What was said of every query, as columns of int32.

    Attributes:
        episode: number of its episode, ``(A,)``, rising.
        video: the query's place in the catalog, ``(A,)``.
        truth, predicted: classes of the catalog, ``(A,)``.
        offered: classes of every episode, ``(E, n_way)``; -1 where an episode has fewer than another.
    """

    episode: Tensor
    video: Tensor
    truth: Tensor
    predicted: Tensor
    offered: Tensor

    @property
    def right(self) -> Tensor:
        """``(A,)`` of 0 and 1, float64."""
        return (self.truth == self.predicted).double()

    @staticmethod
    def join(parts: list[Answers]) -> Answers:
        """Of consecutive episodes."""
        ways = max(part.offered.shape[1] for part in parts)
        padded = [torch.nn.functional.pad(p.offered, (0, ways - p.offered.shape[1]), value=-1) for p in parts]
        names = ("episode", "video", "truth", "predicted")
        columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return Answers(**columns, offered=torch.cat(padded))


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of every episode, ``(E,)`` in ``[0, 1]``; ``episodes`` is a hash of which they were."""

    accuracies: Tensor
    episodes: str
    answers: Answers | None = None

    @property
    def accuracy(self) -> Estimate:
        return Estimate.of(self.accuracies)


@torch.no_grad()
def encode_videos(
    recognizer: FewShotRecognizer,
    videos: Dataset[Tensor],
    batch_size: int | None = None,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
    worker_init_fn: Callable[[int], None] | None = None,
) -> VideoState:
    """All that can be kept (see `sides`) of a data set of clips ``(T, 3, H, W)``, in its order, on the CPU.

    ``batch_size`` None: as the device has it best. ``worker_init_fn``: as of torch's ``DataLoader``.

    Raises:
        DmgalError: a state would depend on what else is in its batch.
    """
    check_states_can_be_kept(recognizer.eval())
    pinned = torch.device(device).type == "cuda"
    batch_size = batch_size or videos_at_a_time(device)
    loader = DataLoader(
        videos, batch_size=batch_size, num_workers=num_workers, pin_memory=pinned, worker_init_fn=worker_init_fn
    )
    bar = tqdm(loader, desc="encode", unit="batch", leave=False, disable=not progress)
    return VideoState.cat([encode_sides(recognizer, batch.to(device, non_blocking=pinned)).to("cpu") for batch in bar])


@torch.no_grad()
def evaluate(
    recognizer: FewShotRecognizer,
    states: VideoState,
    sampler: TaskSampler,
    device: torch.device | str = "cpu",
    progress: bool = True,
    data: str = "",
    until: float | None = None,
    at_least: int = LOOK_EVERY,
    dtype: torch.dtype | None = None,
) -> Evaluation:
    """Accuracy of a recognizer on the episodes of a sampler, from what was kept of the videos.

    Args:
        recognizer: it is put into evaluation mode.
        states: of `encode_videos` or of a cache; states of `FewShotRecognizer.encode` will do, too.
        sampler: the episodes.
        device: where to compare.
        progress: whether to show a bar.
        data: says whose videos they are; results on other data are then known to be on other episodes.
        until: stop as soon as the half-width of the interval, in points, is not above this. Because one looks again
            and again, such an interval covers the truth a little less often than it says.
        at_least: episodes before the first look.
        dtype: turn the states into this type when they are used, where they were kept in fewer bits.
    """
    recognizer.eval()
    logits = _logits(recognizer, states, sampler, device, progress, dtype)
    bar = tqdm(total=len(sampler), desc="episodes", unit="episode", leave=False, disable=not progress)
    parts: list[Answers] = []
    accuracies: list[Tensor] = []
    fingerprint, done = blake2b(data.encode(), digest_size=8), 0
    for tasks in _alike(sampler):
        support, query = (torch.tensor([getattr(task, side) for task in tasks]) for side in ("support", "query"))
        predicted = logits(support, torch.tensor(tasks[0].support_labels), query).argmax(dim=2).cpu()  # (E, Q)
        parts.append(_answers(tasks, query, predicted, first_episode=done))
        accuracies.append(parts[-1].right.view(predicted.shape).mean(dim=1))
        for task in tasks:
            fingerprint.update(repr(task).encode())
        before, done = done, done + len(tasks)
        bar.update(len(tasks))
        looks = until is not None and done >= at_least and before // LOOK_EVERY < done // LOOK_EVERY
        if looks and until is not None and Estimate.of(torch.cat(accuracies)).half_width <= until:
            break
    bar.close()
    return Evaluation(torch.cat(accuracies), fingerprint.hexdigest(), Answers.join(parts))


def paired_difference(first: Evaluation, second: Evaluation) -> Estimate:
    """``first`` minus ``second`` in points, with the interval of the paired difference.

    Raises:
        ValueError: the two were not evaluated on the same episodes.
    """
    if first.episodes != second.episodes:
        raise ValueError(f"different episodes: {first.episodes} and {second.episodes}")
    return Estimate.of(first.accuracies - second.accuracies)


Logits = Callable[[Tensor, Tensor, Tensor], Tensor]


def _logits(
    recognizer: FewShotRecognizer,
    states: VideoState,
    sampler: TaskSampler,
    device: torch.device | str,
    progress: bool,
    dtype: torch.dtype | None,
) -> Logits:
    """From places ``(E, S)``, labels ``(S,)`` and places ``(E, Q)`` to ``(E, Q, n_way)``.

    Pairs are scored once, where that is cheaper, judged by the first task, and the tasks' own shots allow it.
    """
    support_states, query_states = sides(states)

    def compared(support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        parts = [
            compare_tasks(
                recognizer,
                support_states,
                labels.to(device),
                query_states.select(others.flatten()).to(device, dtype),
                len(some),
                places=some,
                dtype=dtype,
            )
            for some, others in _portions(support, query, support_states, query_states)
        ]
        return torch.cat(parts)

    def may_be_looked_up(labels: Tensor) -> bool:
        return why_no_pair_scores(recognizer, k_shot=int(labels.bincount().max())) is None

    task = sampler[0]
    pairs = len(sampler) * len(task.support) * len(task.query)
    if states.num_videos**2 > TABLE_GAIN * pairs or not may_be_looked_up(torch.tensor(task.support_labels)):
        return compared
    table = pair_table(recognizer, states if dtype is None else states.to(dtype), device, progress)

    def looked_up_where_possible(support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        if may_be_looked_up(labels):
            return look_up(table, support, labels, query)
        return compared(support, labels, query)

    return looked_up_where_possible


def _portions(
    support: Tensor, query: Tensor, support_states: VideoState, query_states: VideoState
) -> Iterator[tuple[Tensor, Tensor]]:
    """Some tasks at a time, whose states together are not large."""
    task_bytes = support.shape[1] * _bytes_per_video(support_states) + query.shape[1] * _bytes_per_video(query_states)
    size = max(1, min(TASKS_AT_A_TIME, BYTES_AT_A_TIME // max(task_bytes, 1)))
    return zip(support.split(size), query.split(size), strict=True)


def _bytes_per_video(states: VideoState) -> int:
    return sum(tensor[:1].nbytes for tensor in states.values())


def _alike(sampler: TaskSampler) -> Iterator[list[EpisodeIndices]]:
    """Consecutive episodes that have the same labels, at most ``LOOK_EVERY`` at a time."""
    episodes = iter(sampler)
    while some := list(islice(episodes, LOOK_EVERY)):
        alike: list[EpisodeIndices] = []
        for episode in some:
            if alike and _labels(episode) != _labels(alike[0]):
                yield alike
                alike = []
            alike.append(episode)
        yield alike


def _labels(episode: EpisodeIndices) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return episode.support_labels, episode.query_labels


def _answers(tasks: list[EpisodeIndices], query: Tensor, predicted: Tensor, first_episode: int) -> Answers:
    offered = torch.tensor([task.classes for task in tasks], dtype=torch.int32)  # (E, n_way)
    truth = torch.tensor(tasks[0].query_labels).expand(len(tasks), -1)
    episode = torch.arange(first_episode, first_episode + len(tasks), dtype=torch.int32)
    return Answers(
        episode=episode.repeat_interleave(query.shape[1]),
        video=query.flatten().int(),
        truth=offered.gather(1, truth).flatten(),
        predicted=offered.gather(1, predicted).flatten(),
        offered=offered,
    )
