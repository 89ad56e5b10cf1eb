"""The expected accuracy over ALL episodes of a split, without drawing one.

Where a query's score for a support video depends on these two alone, a query is right with a probability that has a
closed form. Let d be its score for the support video of its own class, and for every other class k let ``below_k`` and
``not_above_k`` be the shares of its videos with scores ``< d`` and ``<= d``. Support videos are drawn independently, so
with the other classes M of the task the query is right with the product over M; with the classes M drawn from all, with
an elementary symmetric polynomial over the number of choices.

Ties are counted as ``argmax`` counts them: the first of the largest wins, and a task's classes come in random order. So
a tied class beats the query's own if it comes earlier. With the own class at a place drawn uniformly, the probability
is the integral over u from 0 to 1 of the product of ``u below_k + (1 - u) not_above_k`` (a Beta integral): a polynomial
in u, which Gauss-Legendre integrates exactly.

Classes may be drawn in groups, as reversal pairs are. The number of queries does not matter to an expected value. Ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DmgalError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ExactAccuracy:
    """Expected over all episodes of one shot.

    Attributes:
        mean: in percent.
        by_class: in percent, by the class of the query, in the order of ``classes``.
        classes: the classes that episodes are drawn from.
    """

    mean: float
    by_class: tuple[float, ...]
    classes: tuple[int, ...]


def exact_accuracy(
    table: Tensor, labels: Sequence[int] | NDArray[np.int64], groups: Sequence[Sequence[int]], num_groups: int
) -> ExactAccuracy:
    """Accuracy over all one-shot tasks, in float64; a second or two for thousands of videos.

    Args:
        table: scores ``(V, V)`` of each query (row) for each support video (column); see `pair_scores.pair_table`.
        labels: class of each video, ``(V,)``.
        groups: classes that always are in a task together: ``[[0], [1], ...]`` for random classes, the pairs for
            reversal tasks; no class twice, all groups of one size.
        num_groups: groups in a task, drawn uniformly; a task has ``num_groups * size of a group`` ways.

    Raises:
        DmgalError: too few groups, a class with fewer than two videos, or scores that are not finite.
    """
    scores, classes = table.double().numpy(), np.asarray(labels)
    members = {c: np.flatnonzero(classes == c) for group in groups for c in group}
    _check(scores, groups, num_groups, members)
    by_class = {}
    for place, group in enumerate(groups):
        rest = [list(other) for number, other in enumerate(groups) if number != place]
        for own in group:
            partners = [c for c in group if c != own]
            by_class[own] = float(np.mean(_right(scores, members, own, partners, rest, num_groups - 1)))
    percent = tuple(100 * value for value in by_class.values())
    return ExactAccuracy(math.fsum(percent) / len(percent), percent, tuple(by_class))


def _right(
    scores: Floats,
    members: dict[int, NDArray[np.intp]],
    own: int,
    partners: list[int],
    rest: list[list[int]],
    num_others: int,
) -> Floats:
    """Probability of a right answer for each query of a class and each other video of it as its support, ``(n, n-1)``.

    Args:
        partners: classes that are in every task with this one.
        rest: the other groups, of which ``num_others`` are in the task, too.
    """
    videos = members[own]
    n = len(videos)
    own_scores = scores[np.ix_(videos, videos)][~np.eye(n, dtype=bool)].reshape(n, n - 1)
    shares = {c: _shares(scores[np.ix_(videos, members[c])], own_scores) for group in [partners, *rest] for c in group}
    degree = len(partners) + num_others * (len(partners) + 1)
    tied = any((below != not_above).any() for below, not_above in shares.values())
    nodes, weights = np.polynomial.legendre.leggauss(degree // 2 + 1 if tied else 1)
    total = np.zeros_like(own_scores)
    for u, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        wins = {c: u * below + (1 - u) * not_above for c, (below, not_above) in shares.items()}
        always = math.prod((wins[c] for c in partners), start=np.ones_like(own_scores))
        drawn = [math.prod((wins[c] for c in group), start=np.ones_like(own_scores)) for group in rest]
        total += weight * always * _symmetric(drawn, num_others, own_scores) / math.comb(len(rest), num_others)
    return total


def _shares(other: Floats, own: Floats) -> tuple[Floats, Floats]:
    """Of each query's scores for another class ``(n, m)``, the shares below and not above each own score ``(n, k)``."""
    ordered = np.sort(other, axis=1)
    below = np.stack([np.searchsorted(row, values, "left") for row, values in zip(ordered, own, strict=True)])
    not_above = np.stack([np.searchsorted(row, values, "right") for row, values in zip(ordered, own, strict=True)])
    return below / other.shape[1], not_above / other.shape[1]


def _symmetric(values: Sequence[Floats], degree: int, like: Floats) -> Floats:
    """The elementary symmetric polynomial: the sum over all choices of ``degree`` values of their product."""
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
            remedy="lower the ways, add videos, or evaluate episodes instead",
        )
