"""Exact accuracy compared with counting all episodes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from evaluation_cases import clips, of_head
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmgal.episodes import EpisodeSampler, ReversalSampler
from dmgal.episodes.evaluation import encode_videos
from dmgal.episodes.evaluation.exact_accuracy import exact_accuracy
from dmgal.episodes.evaluation.states import pair_table
from dmgal.errors import DmgalError


def counted(table: Tensor, labels: list[int], groups: list[list[int]], num_groups: int) -> dict[int, float]:
    """Count correct answers over all tasks, class orders, supports and queries with ``argmax``."""
    members = {c: [v for v, label in enumerate(labels) if label == c] for group in groups for c in group}
    right: dict[int, list[float]] = {c: [] for c in members}
    for chosen in itertools.combinations(groups, num_groups):
        for classes in itertools.permutations([c for group in chosen for c in group]):
            supports = torch.tensor(list(itertools.product(*(members[c] for c in classes))))  # (n, n_way)
            for place, own in enumerate(classes):
                wins = [
                    (table[query, support].argmax() == place).item()
                    for query in members[own]
                    for support in supports[supports[:, place] != query]
                ]
                right[own].append(sum(wins) / len(wins))
    return {c: 100 * math.fsum(values) / len(values) for c, values in right.items()}


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, list[int], list[list[int]], int]:
    """Draw scores with many ties, and classes of two or three videos in any order."""
    size, num_groups = draw(st.sampled_from([(1, 2), (1, 3), (2, 1), (2, 2)]))
    count = draw(st.integers(num_groups, 3 if size == 1 else 2))
    groups = [list(range(size * g, size * (g + 1))) for g in range(count)]
    labels = [c for group in groups for c in group for _ in range(draw(st.integers(2, 2 + (size == 1))))]
    labels = draw(st.permutations(labels))
    levels = draw(st.sampled_from([1, 2, 3, 1000]))
    numbers = st.integers(0, levels - 1)
    scores = draw(st.lists(numbers, min_size=len(labels) ** 2, max_size=len(labels) ** 2))
    return torch.tensor(scores).float().view(len(labels), -1), labels, groups, num_groups


@settings(max_examples=25)
@given(problems())
def test_equals_counting(problem: tuple[Tensor, list[int], list[list[int]], int]) -> None:
    table, labels, groups, num_groups = problem
    exact, expected = exact_accuracy(table, labels, groups, num_groups), counted(table, labels, groups, num_groups)
    assert dict(zip(exact.classes, exact.by_class, strict=True)) == pytest.approx(expected, abs=1e-9)
    assert exact.mean == pytest.approx(np.mean(list(expected.values())), abs=1e-9)


@pytest.mark.parametrize("name", ["BiMHM", "Prototype euclidean"])
def test_equals_mean_over_all_episodes_of_a_recognizer(name: str) -> None:
    """Three classes of two videos, with one video twice, so that its scores are tied."""
    recognizer, videos, labels = of_head(name), clips(6), [0, 0, 1, 1, 2, 2]
    videos[4] = videos[0]
    states = encode_videos(recognizer, list(videos), progress=False)
    exact = exact_accuracy(pair_table(recognizer, states, progress=False), labels, [[0], [1], [2]], 2)
    right = []
    with torch.no_grad():
        for classes in itertools.permutations(range(3), 2):
            for support in itertools.product(*([2 * c, 2 * c + 1] for c in classes)):
                query = [place ^ 1 for place in support]  # the other video of each class
                known, asked = states.support.select(torch.tensor(support)), states.query.select(torch.tensor(query))
                logits = recognizer.compare(known.state, torch.arange(2), asked).logits
                right += (logits.argmax(1) == torch.arange(2)).tolist()
    assert exact.mean == pytest.approx(100 * sum(right) / len(right), abs=1e-9)


def test_all_scores_tied_gives_chance() -> None:
    exact = exact_accuracy(torch.zeros(12, 12), [0, 0, 1, 1, 2, 2] * 2, [[0], [1], [2]], 3)
    assert exact.mean == pytest.approx(100 / 3)


@pytest.mark.parametrize("pairs", [None, [(0, 1), (2, 3), (4, 5)]])
def test_sampled_episodes_are_close(pairs: list[tuple[int, int]] | None) -> None:
    """Classes of unequal sizes, two queries per class."""
    labels = [c for c in range(6) for _ in range(4 + 3 * c)]
    generator = torch.Generator().manual_seed(0)
    own = torch.tensor(labels)[:, None] == torch.tensor(labels)
    table = torch.randn(len(labels), len(labels), generator=generator).round(decimals=1) + own
    if pairs is None:
        exact = exact_accuracy(table, labels, [[c] for c in range(6)], 4)
        sampler = EpisodeSampler(labels, 4, 1, 2, 4000, 0)
    else:
        exact, sampler = exact_accuracy(table, labels, pairs, 2), ReversalSampler(pairs, labels, 1, 2, 2, 4000, 0)
    right = []
    for task in sampler:
        logits = table[list(task.query)][:, list(task.support)]
        right.append((logits.argmax(1) == torch.tensor(task.query_labels)).float().mean())
    values = 100 * torch.stack(right)
    assert values.mean().item() == pytest.approx(exact.mean, abs=3 * values.std().item() / 4000**0.5)
    assert 30 < exact.mean < 90


@pytest.mark.parametrize(
    ("labels", "groups", "num_groups", "bad", "message"),
    [
        ([0, 0, 1, 1], [[0], [1]], 3, 0.0, "num_groups=3"),
        ([0, 0, 1], [[0], [1]], 2, 0.0, "fewer than 2 videos: 1"),
        ([0, 0, 1, 1], [[0, 1], [1, 0]], 1, 0.0, "2 different classes"),
        ([0, 0, 1, 1], [[0], [1]], 2, math.nan, "not finite"),
    ],
)
def test_invalid_input_raises(labels, groups, num_groups, bad, message) -> None:
    table = torch.full((len(labels), len(labels)), bad)
    with pytest.raises(DmgalError, match=message):
        exact_accuracy(table, labels, groups, num_groups)
