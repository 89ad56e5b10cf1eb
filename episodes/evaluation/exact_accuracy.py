"""Accuracy of a head with pair scores over all possible one-shot episodes, in closed form (our own method).

No episode is drawn. If a query's score for a support video depends only on these two videos, the probability of a
correct answer has a closed form. Let d be the query's score for the support video of its own class. For every other
class k let ``below_k`` and ``not_above_k`` be the shares of its videos with scores ``< d`` and ``<= d``. Support videos
are drawn independently. With the other classes M of the task, the probability is the product of the shares over M. If
M is drawn from all classes, it is an elementary symmetric polynomial of the shares, divided by the number of choices.

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
from numpy.typing import NDArray
from torch import Tensor

from ...errors import DmgalError

Floats = NDArray[np.float64]


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
        table: scores ``(V, V)`` of each query (row) for each support video (column), see `states.pair_table`.
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
