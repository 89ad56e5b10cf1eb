"""Statistics of methods that were evaluated on the same episodes.

A method may be several runs that differ in their training seed. An interval over episodes only holds for these trained
models and these classes. The spread over seeds and the bootstrap over classes show how far the difference generalizes.
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

from .accuracy import Answers, Estimate, Evaluation, normal_or_t_quantile

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


def interval_of_mean(values: NDArray[np.float64], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
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
