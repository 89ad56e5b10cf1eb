"""Statistics of methods: comparison on the same episodes, and the exact accuracy over all possible episodes.

A method may be several runs that differ in their training seed. An interval over episodes only holds for these trained
models and these classes. The spread over seeds and the bootstrap over classes show how far the difference generalizes.

The exact accuracy (our own method) applies to heads with pair scores and draws no episode. If a query's score for a
support video depends only on these two videos, the probability of a correct answer has a closed form. Let d be the
query's score for the support video of its own class. For every other class k let ``below_k`` and ``not_above_k`` be the
shares of its videos with scores ``< d`` and ``<= d``. Support videos are drawn independently. With the other classes M
of the task, the probability is the product of the shares over M. If M is drawn from all classes, it is an elementary
symmetric polynomial of the shares, divided by the number of choices of M.

Ties count as in ``argmax``: the first of the largest scores wins, and the classes of a task come in random order. A
tied class therefore beats the query's own class if it comes earlier. The position of the own class is uniform, so the
probability is the integral over u from 0 to 1 of the product of ``u below_k + (1 - u) not_above_k`` (a Beta integral).
This is a polynomial in u, which Gauss-Legendre quadrature integrates exactly.

Classes may be drawn in groups, such as reversal pairs. The number of queries does not change an expected value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from ...errors import DmgalError
from .accuracy import Answers, Estimate, Evaluation, normal_or_t_quantile

Floats = NDArray[np.float64]
RESAMPLES = 10_000
LEAST_RESAMPLED = 5
"""Smallest number of values for a bootstrap."""


@dataclass(frozen=True)
class Interval:
    """A mean in percent or points with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


@dataclass(frozen=True)
class Spread:
    """Values of a method's runs in percent or points, with mean and deviation (None for a single run)."""

    values: tuple[float, ...]
    mean: float
    deviation: float | None

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Return the spread of one value per run."""
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return Spread(tuple(values), math.fsum(values) / len(values), deviation)

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + ("" if self.deviation is None else f" (deviation {self.deviation:.1f})")


@dataclass(frozen=True)
class Disagreement:
    """An episode and its queries that the two methods answer differently.

    Attributes:
        episode: index of the episode.
        difference: accuracy of the first method minus that of the second, in points.
        places: rows of the answers.
    """

    episode: int
    difference: float
    places: tuple[int, ...]


def mean_accuracies(runs: Sequence[Evaluation]) -> Tensor:
    """Return the accuracy of each episode, averaged over the runs of a method, ``(E,)``.

    Raises:
        ValueError: the runs were not evaluated on the same episodes.
    """
    _check_same(runs)
    return torch.stack([run.accuracies for run in runs]).mean(dim=0)


def difference(one: Sequence[Evaluation], other: Sequence[Evaluation]) -> Estimate:
    """Return ``one`` minus ``other`` in points, both averaged over their runs, with the interval over episodes."""
    _check_same([*one, *other])
    return Estimate.of(mean_accuracies(one) - mean_accuracies(other))


def spread_over_runs(runs: Sequence[Evaluation]) -> Spread:
    """Return the accuracies of a method's runs in percent, with their standard deviation."""
    return Spread.of([run.accuracy.mean for run in runs])


def accuracy_by_class(runs: Sequence[Evaluation]) -> dict[int, float]:
    """Return the percentage of correct answers to the queries of each class, over all runs of a method."""
    answers = [_answers(run) for run in runs]
    truth = torch.cat([part.truth for part in answers]).long()
    right = torch.cat([part.right for part in answers])
    counts = torch.bincount(truth)
    shares = 100 * torch.bincount(truth, weights=right) / counts.clamp(min=1)
    return {c: shares[c].item() for c in counts.nonzero().flatten().tolist()}


def bootstrap_over_classes(
    one: Sequence[Evaluation], other: Sequence[Evaluation], resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Return the mean difference over classes in points, with an interval from resampling the classes.

    Only the classes of the queries are resampled. The classes that a query was compared with stay the same.
    """
    _check_same([*one, *other])
    first, second = accuracy_by_class(one), accuracy_by_class(other)
    return interval_of_mean(np.array([first[c] - second[c] for c in first]), resamples, seed)


def interval_of_mean(values: Floats, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return the mean of a few values with a 95 % interval, also for skewed distributions.

    The interval is that of the studentized bootstrap (Efron and Tibshirani, 1993, chapter 12). A percentile interval
    is a third too narrow for five values. Coverage in simulations: ``bench/coverage.py``. Below ``LEAST_RESAMPLED``
    values there are too few different samples, and the interval is Student's.
    """
    count, mean = len(values), float(values.mean())
    if count == 1:
        return Interval(mean, -math.inf, math.inf)
    error = float(values.std(ddof=1)) / math.sqrt(count)
    low, high = -normal_or_t_quantile(count - 1), normal_or_t_quantile(count - 1)
    if count >= LEAST_RESAMPLED and error > 0:
        drawn = values[np.random.default_rng(seed).integers(count, size=(resamples, count))]
        errors = drawn.std(axis=1, ddof=1) / math.sqrt(count)
        varies = errors > 1e-9 * error
        low, high = np.percentile((drawn.mean(axis=1)[varies] - mean) / errors[varies], [2.5, 97.5]).tolist()
    return Interval(mean, mean - high * error, mean - low * error)


def confusion(runs: Sequence[Evaluation], num_classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count confusions over all runs.

    Returns:
        ``chosen`` and ``offered``, both ``(num_classes, num_classes)``: how often a query of the row's class was
        predicted as the column's class, and how often the column's class was in the query's task.
    """
    chosen = np.zeros((num_classes, num_classes), dtype=np.int64)
    offered = np.zeros_like(chosen)
    for run in runs:
        answers = _answers(run)
        truth, predicted = answers.truth.numpy(), answers.predicted.numpy()
        choices = answers.offered[answers.episode.long()].numpy()  # (A, n_way)
        is_class = choices >= 0  # episodes with fewer classes are padded
        rows = np.broadcast_to(rearrange(truth, "a -> a 1"), choices.shape)
        np.add.at(chosen, (truth, predicted), 1)
        np.add.at(offered, (rows[is_class], choices[is_class]), 1)
    return chosen, offered


def strongest_disagreements(
    one: Sequence[Evaluation], other: Sequence[Evaluation], count: int = 5
) -> list[Disagreement]:
    """Return the episodes with the largest differences in accuracy. Ties go to more differing answers."""
    _check_same([*one, *other])
    gaps = (mean_accuracies(one) - mean_accuracies(other)).numpy()
    answers = [_answers(run) for run in (*one, *other)]
    predicted = torch.stack([part.predicted for part in answers]).numpy()  # (runs, A)
    differs = predicted[0] != predicted[len(one)]  # between the first runs, which are the ones shown
    episode = answers[0].episode.numpy()
    num_differing = np.bincount(episode[differs], minlength=len(gaps))
    order = np.lexsort((np.arange(len(gaps)), -num_differing, -np.abs(gaps).round(9)))[:count]
    disagreements = []
    for index in order.tolist():
        if gaps[index] or num_differing[index]:
            rows = np.flatnonzero((episode == index) & differs)
            disagreements.append(Disagreement(index, float(100 * gaps[index]), tuple(rows.tolist())))
    return disagreements


def _answers(run: Evaluation) -> Answers:
    if run.answers is None:
        raise ValueError("An evaluation without answers cannot be analyzed.")
    return run.answers


def _check_same(runs: Sequence[Evaluation]) -> None:
    hashes = {run.episodes for run in runs}
    if len(hashes) != 1:
        raise ValueError(f"The evaluations used different episodes: {', '.join(sorted(hashes))}.")


@dataclass(frozen=True)
class ExactAccuracy:
    """Accuracy expected over all one-shot episodes.

    Attributes:
        mean: percent.
        by_class: percent for the queries of each class, in the order of ``classes``.
        classes: the classes that episodes are drawn from.
    """

    mean: float
    by_class: tuple[float, ...]
    classes: tuple[int, ...]


def exact_accuracy(
    table: Tensor, labels: Sequence[int] | NDArray[np.int64], groups: Sequence[Sequence[int]], num_groups: int
) -> ExactAccuracy:
    """Compute the accuracy over all one-shot tasks in float64, in a second or two for thousands of videos.

    Args:
        table: scores ``(V, V)`` of each query (row) for each support video (column), see `pair_scores.pair_table`.
        labels: class of each video, ``(V,)``.
        groups: classes that are always in a task together: ``[[0], [1], ...]`` for random classes, the pairs for
            reversal tasks. No class occurs twice, and all groups have the same size.
        num_groups: groups in a task, drawn uniformly. A task has ``num_groups * size of a group`` ways.

    Raises:
        DmgalError: there are too few groups, a class has fewer than two videos, or scores are not finite.
    """
    scores, classes = table.double().numpy(), np.asarray(labels)
    members = {c: np.flatnonzero(classes == c) for group in groups for c in group}
    _check(scores, groups, num_groups, members)
    by_class = {}
    for index, group in enumerate(groups):
        other_groups = [list(other) for other_index, other in enumerate(groups) if other_index != index]
        for own in group:
            partners = [c for c in group if c != own]
            probabilities = _probability_correct(scores, members, own, partners, other_groups, num_groups - 1)
            by_class[own] = float(np.mean(probabilities))
    percent = tuple(100 * value for value in by_class.values())
    return ExactAccuracy(math.fsum(percent) / len(percent), percent, tuple(by_class))


def _probability_correct(
    scores: Floats,
    members: dict[int, NDArray[np.intp]],
    own: int,
    partners: list[int],
    other_groups: list[list[int]],
    num_others: int,
) -> Floats:
    """Return the probability of a correct answer, ``(n, n-1)``.

    Rows are the queries of class ``own``; columns are the other videos of the class, as the query's support.

    Args:
        scores: scores of all pairs, ``(V, V)``.
        members: videos of each class.
        own: class of the queries.
        partners: classes that are in every task with this one.
        other_groups: the other groups, ``num_others`` of which are in the task, too.
        num_others: number of other groups in the task.
    """
    videos = members[own]
    n = len(videos)
    own_scores = scores[np.ix_(videos, videos)][~np.eye(n, dtype=bool)].reshape(n, n - 1)
    other_classes = [c for group in [partners, *other_groups] for c in group]
    shares = {c: _shares(scores[np.ix_(videos, members[c])], own_scores) for c in other_classes}
    degree = len(partners) + num_others * (len(partners) + 1)
    tied = any((below != not_above).any() for below, not_above in shares.values())
    nodes, weights = np.polynomial.legendre.leggauss(degree // 2 + 1 if tied else 1)
    total = np.zeros_like(own_scores)
    for u, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        wins = {c: u * below + (1 - u) * not_above for c, (below, not_above) in shares.items()}
        always = math.prod((wins[c] for c in partners), start=np.ones_like(own_scores))
        drawn = [math.prod((wins[c] for c in group), start=np.ones_like(own_scores)) for group in other_groups]
        choices = math.comb(len(other_groups), num_others)
        total += weight * always * _symmetric_polynomial(drawn, num_others, own_scores) / choices
    return total


def _shares(other: Floats, own: Floats) -> tuple[Floats, Floats]:
    """Return the shares of the scores ``other (n, m)`` that are below and not above each score ``own (n, k)``."""
    ordered = np.sort(other, axis=1)
    below = np.stack([np.searchsorted(row, values, "left") for row, values in zip(ordered, own, strict=True)])
    not_above = np.stack([np.searchsorted(row, values, "right") for row, values in zip(ordered, own, strict=True)])
    return below / other.shape[1], not_above / other.shape[1]


def _symmetric_polynomial(values: Sequence[Floats], degree: int, like: Floats) -> Floats:
    """Return the elementary symmetric polynomial: the sum of products over all choices of ``degree`` values."""
    sums = [np.ones_like(like), *(np.zeros_like(like) for _ in range(degree))]
    for value in values:
        for chosen in range(degree, 0, -1):
            sums[chosen] = sums[chosen] + value * sums[chosen - 1]
    return sums[degree]


def _check(
    scores: Floats, groups: Sequence[Sequence[int]], num_groups: int, members: dict[int, NDArray[np.intp]]
) -> None:
    sizes, ways = {len(group) for group in groups}, sum(map(len, groups))
    few = [str(c) for c, videos in members.items() if len(videos) < 2]
    problem = None
    if len(sizes) != 1 or len(members) != ways or not 1 <= num_groups <= len(groups):
        problem = f"num_groups={num_groups} of {len(groups)} groups with {len(members)} different classes"
    elif few:
        problem = f"classes with fewer than 2 videos: {', '.join(few[:5])}"
    elif not np.isfinite(scores).all():
        problem = "scores that are not finite"
    if problem:
        raise DmgalError(
            "The exact accuracy cannot be computed.",
            received=problem,
            expected="enough groups of one size, no class twice, two videos in every class, finite scores",
            remedy="Reduce the ways, add videos, or evaluate episodes instead.",
        )
