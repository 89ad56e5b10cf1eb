"""Accuracy over few-shot episodes: each video is encoded once, and its state answers any number of tasks.

The result is exact, because the state of a video does not depend on the task. All methods answer the same seeded
episodes, so two methods can be compared by their difference in each episode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import islice

import torch
from einops import rearrange
from torch import Tensor

from ...backbones.state import VideoState
from ...loader import Items, Loader
from ...progress import progress_bar
from ..recognizer import FewShotRecognizer
from ..sampler import EpisodeIndices, IndexSampler
from .states import (
    TABLE_GAIN,
    PrecomputedStates,
    SupportStates,
    check_states_can_be_kept,
    compare_tasks,
    look_up,
    pair_table,
    states_to_keep,
    videos_at_a_time,
    why_no_pair_scores,
)

TASKS_AT_A_TIME = 64
BYTES_AT_A_TIME = 2**25
"""Limit on the states of the tasks compared at once. More was not faster, because it exceeds the processor's cache."""
NORMAL_QUANTILE, MANY_DEGREES = 1.96, 1000
"""Normal quantile of a 95 % interval, and the degrees of freedom from which Student's is within 0.12 % of it."""
ONE_SIDED = 0.025
"""Probability outside each end of a 95 % interval."""
LOOK_EVERY = 1000
"""Number of episodes between two checks of the interval, if a half-width is requested."""


@dataclass(frozen=True)
class Estimate:
    """A mean in percent and the half-width of its 95 % interval over episodes (one trained model, these classes)."""

    mean: float
    half_width: float

    @staticmethod
    def of(values: Tensor) -> Estimate:
        """Return the estimate from one value in ``[-1, 1]`` per episode."""
        values = 100 * values.double()
        deviation = values.std().item() if len(values) > 1 else math.inf
        quantile = normal_or_t_quantile(len(values) - 1)
        return Estimate(values.mean().item(), quantile * deviation / math.sqrt(len(values)))

    @staticmethod
    def of_accuracies(values: Tensor) -> Estimate:
        """Return the estimate from the accuracy of each episode.

        Equal accuracies show no variance. Their half-width uses the exact (Clopper-Pearson) bound on the share of
        other episodes, whose accuracies may be 0 or 1.
        """
        value = values[0].item() if len(values) else 0.0
        if len(values) > 1 and (values == value).all():
            other_share = 1 - ONE_SIDED ** (1 / len(values))
            return Estimate(100 * value, 100 * other_share * max(value, 1 - value))
        return Estimate.of(values)

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.half_width:.1f}"


@lru_cache
def normal_or_t_quantile(degrees: int) -> float:
    """Return the number of standard errors in the half-width of a 95 % interval, for ``degrees`` of freedom.

    Below ``MANY_DEGREES`` this is Student's t quantile. With the angle ``a = atan(t / sqrt(degrees))``, the probability
    of the interval from ``-t`` to ``t`` is a finite sum of powers of ``cos(a)`` (Abramowitz and Stegun, 26.7.3 and
    26.7.4). Bisection finds the angle with probability 0.95. A single value (0 degrees) has no finite interval anyway.
    """
    if degrees >= MANY_DEGREES or degrees < 1:
        return NORMAL_QUANTILE
    low, high = 0.0, math.pi / 2
    while low < (angle := (low + high) / 2) < high:
        cosine = math.cos(angle)
        is_odd = degrees % 2
        term = cosine if is_odd else 1.0
        total = term if degrees > 1 else 0.0
        for power in range(2 + is_odd, degrees - 1, 2):
            term *= cosine**2 * (power - 1) / power
            total += term
        probability = 2 / math.pi * (angle + math.sin(angle) * total) if is_odd else math.sin(angle) * total
        low, high = (angle, high) if probability < 0.95 else (low, angle)
    return math.sqrt(degrees) * math.tan(angle)


@dataclass(frozen=True)
class Answers:
    """The predicted class of each query, as columns of int32.

    Attributes:
        episode: index of the query's episode, ``(A,)``, ascending.
        video: index of the query in the catalog, ``(A,)``.
        truth, predicted: classes of the catalog, ``(A,)``.
        offered: classes of each episode, ``(E, n_way)``, padded with -1 if an episode has fewer classes than another.
    """

    episode: Tensor
    video: Tensor
    truth: Tensor
    predicted: Tensor
    offered: Tensor

    @property
    def right(self) -> Tensor:
        """1 for each correct answer and 0 for each wrong one, ``(A,)`` float64."""
        return (self.truth == self.predicted).double()

    @staticmethod
    def join(parts: list[Answers]) -> Answers:
        """Concatenate the answers of consecutive episodes."""
        ways = max(part.offered.shape[1] for part in parts)
        padded = [torch.nn.functional.pad(p.offered, (0, ways - p.offered.shape[1]), value=-1) for p in parts]
        names = ("episode", "video", "truth", "predicted")
        columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return Answers(**columns, offered=torch.cat(padded))


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of each episode, ``(E,)`` in ``[0, 1]``. ``episodes`` is a hash that identifies the episodes."""

    accuracies: Tensor
    episodes: str
    answers: Answers | None = None

    @property
    def accuracy(self) -> Estimate:
        """The mean accuracy in percent with its interval."""
        return Estimate.of_accuracies(self.accuracies)


@torch.no_grad()
def encode_videos(
    recognizer: FewShotRecognizer,
    videos: Items[Tensor],
    batch_size: int | None = None,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
    worker_init_fn: Callable[[int], None] | None = None,
) -> PrecomputedStates:
    """Encode a data set of clips ``(T, 3, H, W)`` into states on the CPU, in the order of the data set.

    Args:
        recognizer: put into evaluation mode.
        videos: the clips.
        batch_size: videos per batch. None: `videos_at_a_time` of the device.
        num_workers: processes that read clips.
        device: device that encodes.
        progress: if True, show a progress bar.
        worker_init_fn: passed on to `Loader`.

    Raises:
        DmgalError: a state would depend on the other videos of its batch, or is not finite.
    """
    check_states_can_be_kept(recognizer.eval())
    pinned = torch.device(device).type == "cuda"
    batch_size = batch_size or videos_at_a_time(device)
    loader = Loader(
        videos, batch_size=batch_size, num_workers=num_workers, pin_memory=pinned, worker_init_fn=worker_init_fn
    )
    bar = progress_bar(loader, progress=progress, desc="encode", unit="batch", leave=False)
    return PrecomputedStates.cat([states_to_keep(recognizer, batch.to(device, non_blocking=pinned)) for batch in bar])


@torch.no_grad()
def evaluate(
    recognizer: FewShotRecognizer,
    states: PrecomputedStates,
    sampler: IndexSampler,
    device: torch.device | str = "cpu",
    progress: bool = True,
    data: str = "",
    until: float | None = None,
    at_least: int = LOOK_EVERY,
    dtype: torch.dtype | None = None,
    tasks: Sequence[int] | None = None,
) -> Evaluation:
    """Evaluate a recognizer on the episodes of a sampler, using precomputed video states.

    Args:
        recognizer: put into evaluation mode.
        states: the result of `encode_videos` or of a cache.
        sampler: the episodes.
        device: device that compares.
        progress: if True, show a progress bar.
        data: identifies the videos, so that results on other data count as results on other episodes.
        until: stop as soon as the half-width of the interval is at most this many points. Because of the repeated
            checks, the interval then covers the truth slightly less often than stated.
        at_least: number of episodes before the first check.
        dtype: convert the states to this type for the comparison, if they were stored in fewer bits.
        tasks: indices of the episodes to evaluate. None: all. The way to compare is always chosen for all episodes, so
            that processes which share them choose alike.
    """
    recognizer.eval()
    comparison = _choose_comparison(recognizer, states, sampler, device, progress, dtype)
    tasks = range(len(sampler)) if tasks is None else tasks
    bar = progress_bar(total=len(tasks), progress=progress, desc="episodes", unit="episode", leave=False)
    parts: list[Answers] = []
    accuracies: list[Tensor] = []
    fingerprint = blake2b(data.encode(), digest_size=8)
    num_done = 0
    for group in _groups_with_equal_labels(sampler[task] for task in tasks):
        support = torch.tensor([task.support for task in group])
        query = torch.tensor([task.query for task in group])
        logits = comparison.logits(support, torch.tensor(group[0].support_labels), query)
        predicted = logits.argmax(dim=2).cpu()
        answers = _make_answers(group, query, predicted, first_episode=num_done)
        parts.append(answers)
        accuracies.append(answers.right.view(predicted.shape).mean(dim=1))
        for task in group:
            fingerprint.update(repr(task).encode())
        bar.update(len(group))
        check_is_due = num_done // LOOK_EVERY < (num_done + len(group)) // LOOK_EVERY
        num_done += len(group)
        if until is None or not check_is_due or num_done < at_least:
            continue
        if Estimate.of_accuracies(torch.cat(accuracies)).half_width <= until:
            break
    bar.close()
    return Evaluation(torch.cat(accuracies), fingerprint.hexdigest(), Answers.join(parts))


def paired_difference(first: Evaluation, second: Evaluation) -> Estimate:
    """Return ``first`` minus ``second`` in points, with the interval of the paired difference.

    Raises:
        ValueError: the two were not evaluated on the same episodes.
    """
    if first.episodes != second.episodes:
        raise ValueError(f"The evaluations used different episodes: {first.episodes} and {second.episodes}.")
    return Estimate.of(first.accuracies - second.accuracies)


@dataclass(frozen=True)
class CompareTasks:
    """Task logits computed by comparing each task's support and query states.

    Attributes:
        recognizer: in evaluation mode.
        support_states, query_states: states of all videos.
        device: device that compares.
        dtype: type that the states are converted to; None: as they are.
    """

    recognizer: FewShotRecognizer
    support_states: SupportStates
    query_states: VideoState
    device: torch.device | str
    dtype: torch.dtype | None

    def logits(self, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        """Return the logits ``(E, Q, n_way)`` of tasks with the same labels ``(S,)``.

        Tasks are indices of support videos ``(E, S)`` and query videos ``(E, Q)``.
        """
        support_layers = self.support_states.state, *(self.support_states.attended or ())
        bytes_per_task = support.shape[1] * sum(map(_bytes_per_video, support_layers))
        bytes_per_task += query.shape[1] * _bytes_per_video(self.query_states)
        num_tasks = max(1, min(TASKS_AT_A_TIME, BYTES_AT_A_TIME // max(bytes_per_task, 1)))
        parts = []
        for support_part, query_part in zip(support.split(num_tasks), query.split(num_tasks), strict=True):
            query_states = self.query_states.select(rearrange(query_part, "e q -> (e q)"))
            logits = compare_tasks(
                self.recognizer,
                self.support_states,
                labels.to(self.device),
                query_states.to(self.device, self.dtype),
                len(support_part),
                places=support_part,
                dtype=self.dtype,
            )
            parts.append(logits)
        return torch.cat(parts)


@dataclass(frozen=True)
class LookUpPairs:
    """Task logits looked up in a table of pair scores; tasks whose shots do not allow it are compared.

    Attributes:
        table: scores of all pairs of videos, see `pair_table`.
        compare: compares the tasks that cannot be looked up.
    """

    table: Tensor
    compare: CompareTasks

    def logits(self, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        """Return the logits ``(E, Q, n_way)``, see `CompareTasks.logits`."""
        if _pair_scores_suffice(self.compare.recognizer, labels):
            return look_up(self.table, support, labels, query)
        return self.compare.logits(support, labels, query)


def _choose_comparison(
    recognizer: FewShotRecognizer,
    states: PrecomputedStates,
    sampler: IndexSampler,
    device: torch.device | str,
    progress: bool,
    dtype: torch.dtype | None,
) -> CompareTasks | LookUpPairs:
    """Choose the cheaper way to answer the tasks, judged by the first one."""
    compare = CompareTasks(recognizer, states.support, states.query, device, dtype)
    task = sampler[0]
    num_pairs = len(sampler) * len(task.support) * len(task.query)
    table_pays = states.num_videos**2 <= TABLE_GAIN * num_pairs
    if not table_pays or not _pair_scores_suffice(recognizer, torch.tensor(task.support_labels)):
        return compare
    states = states if dtype is None else states.to(dtype)
    return LookUpPairs(pair_table(recognizer, states, device, progress), compare)


def _pair_scores_suffice(recognizer: FewShotRecognizer, labels: Tensor) -> bool:
    return why_no_pair_scores(recognizer, k_shot=int(labels.bincount().max())) is None


def _bytes_per_video(states: VideoState) -> int:
    return sum(tensor[:1].nbytes for tensor in states.values())


def _groups_with_equal_labels(episodes: Iterator[EpisodeIndices]) -> Iterator[list[EpisodeIndices]]:
    """Yield consecutive episodes that have the same labels, at most ``LOOK_EVERY`` at a time."""
    while block := list(islice(episodes, LOOK_EVERY)):
        group: list[EpisodeIndices] = []
        for episode in block:
            if group and _labels(episode) != _labels(group[0]):
                yield group
                group = []
            group.append(episode)
        yield group


def _labels(episode: EpisodeIndices) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return episode.support_labels, episode.query_labels


def _make_answers(tasks: list[EpisodeIndices], query: Tensor, predicted: Tensor, first_episode: int) -> Answers:
    """Return the answers to the queries ``(E, Q)`` from the predicted labels ``(E, Q)``."""
    offered = torch.tensor([task.classes for task in tasks], dtype=torch.int32)
    truth = torch.tensor(tasks[0].query_labels).expand(len(tasks), -1)
    episode = torch.arange(first_episode, first_episode + len(tasks), dtype=torch.int32)
    return Answers(
        episode=episode.repeat_interleave(query.shape[1]),
        video=query.flatten().int(),
        truth=offered.gather(1, truth).flatten(),
        predicted=offered.gather(1, predicted).flatten(),
        offered=offered,
    )
