"""Two methods on the same episodes: how much better, for which classes, what is mistaken, and where they disagree.

A method may be several runs that differ in their training seed. An interval over episodes speaks of these trained
models and these classes alone; the spread over seeds and the bootstrap over classes say how far the difference carries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .evaluation import Answers, Estimate, Evaluation

Floats = NDArray[np.float64]
RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean in percent or points, and the 95 % interval around it."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


@dataclass(frozen=True)
class Spread:
    """Of one number per run, in percent or points; the deviation is None for a single run."""

    values: tuple[float, ...]
    mean: float
    deviation: float | None

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return Spread(tuple(values), math.fsum(values) / len(values), deviation)

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + ("" if self.deviation is None else f" (deviation {self.deviation:.1f})")


@dataclass(frozen=True)
class Disagreement:
    """An episode, and the queries in it that the two methods answer differently.

    ``places`` are rows of the answers; ``difference`` is the accuracy of the one minus that of the other, in points.
    """

    episode: int
    difference: float
    places: tuple[int, ...]


def mean_accuracies(runs: Sequence[Evaluation]) -> Tensor:
    """Accuracy of every episode, averaged over the runs of a method, ``(E,)``.

    Raises:
        ValueError: the runs were not evaluated on the same episodes.
    """
    _check_same(runs)
    return torch.stack([run.accuracies for run in runs]).mean(dim=0)


def difference(one: Sequence[Evaluation], other: Sequence[Evaluation]) -> Estimate:
    """``one`` minus ``other`` in points, both averaged over their runs, with the interval over episodes."""
    _check_same([*one, *other])
    return Estimate.of(mean_accuracies(one) - mean_accuracies(other))


def spread_over_runs(runs: Sequence[Evaluation]) -> Spread:
    """Accuracies of a method's runs in percent, with the standard deviation between them."""
    return Spread.of([run.accuracy.mean for run in runs])


def accuracy_by_class(runs: Sequence[Evaluation]) -> dict[int, float]:
    """Share of right answers to the queries of each class that came up, in percent, over all runs of a method."""
    answers = [_answers(run) for run in runs]
    truth = torch.cat([part.truth for part in answers]).long()
    right = torch.cat([part.right for part in answers])
    counts = torch.bincount(truth)
    shares = 100 * torch.bincount(truth, weights=right) / counts.clamp(min=1)
    return {c: shares[c].item() for c in counts.nonzero().flatten().tolist()}


def bootstrap_over_classes(
    one: Sequence[Evaluation], other: Sequence[Evaluation], resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean over classes of their difference in points, had these classes been drawn anew.

    Classes of the queries are resampled; which classes they were told from stays as it was. Percentile interval.
    """
    _check_same([*one, *other])
    first, second = accuracy_by_class(one), accuracy_by_class(other)
    differences = np.array([first[c] - second[c] for c in first])
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(differences), size=(resamples, len(differences)))
    low, high = np.percentile(differences[drawn].mean(axis=1), [2.5, 97.5])
    return Interval(float(differences.mean()), float(low), float(high))


def confusion(runs: Sequence[Evaluation], num_classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What is taken for what.

    Returns:
        ``chosen`` and ``offered``, ``(num_classes, num_classes)``: how often a query of the class of the row was taken
        for the class of the column, and how often it could have been, over all runs.
    """
    chosen = np.zeros((num_classes, num_classes), dtype=np.int64)
    offered = np.zeros_like(chosen)
    for run in runs:
        answers = _answers(run)
        truth, predicted = answers.truth.numpy(), answers.predicted.numpy()
        choices = answers.offered[answers.episode.long()].numpy()  # (A, n_way)
        is_there = choices >= 0
        np.add.at(chosen, (truth, predicted), 1)
        np.add.at(offered, (np.broadcast_to(truth[:, None], choices.shape)[is_there], choices[is_there]), 1)
    return chosen, offered


def strongest_disagreements(
    one: Sequence[Evaluation], other: Sequence[Evaluation], count: int = 5
) -> list[Disagreement]:
    """Episodes in which the methods' accuracies differ most; among equals those with more differing answers first."""
    _check_same([*one, *other])
    gaps = (mean_accuracies(one) - mean_accuracies(other)).numpy()
    answers = [_answers(run) for run in (*one, *other)]
    predicted = torch.stack([part.predicted for part in answers]).numpy()  # (runs, A)
    # one run of each is shown, so a query counts where these two differ
    differs = predicted[0] != predicted[len(one)]
    episode = answers[0].episode.numpy()
    numbers = np.bincount(episode[differs], minlength=len(gaps))
    order = np.lexsort((np.arange(len(gaps)), -numbers, -np.abs(gaps).round(9)))[:count]
    chosen = [number for number in order.tolist() if gaps[number] or numbers[number]]
    return [
        Disagreement(number, float(100 * gaps[number]), tuple(np.flatnonzero((episode == number) & differs).tolist()))
        for number in chosen
    ]


def _answers(run: Evaluation) -> Answers:
    if run.answers is None:
        raise ValueError("an evaluation without answers cannot be looked into")
    return run.answers


def _check_same(runs: Sequence[Evaluation]) -> None:
    hashes = {run.episodes for run in runs}
    if len(hashes) != 1:
        raise ValueError(f"different episodes: {', '.join(sorted(hashes))}")
