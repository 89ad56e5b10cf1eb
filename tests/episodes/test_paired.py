"""Comparison of two methods with known answers on the same episodes."""

from __future__ import annotations

import math
from statistics import stdev

import numpy as np
import pytest
import torch

from dmgal.bench.coverage import DIFFERENCES, coverage_over_classes
from dmgal.episodes import EpisodeSampler
from dmgal.episodes.evaluation import Estimate, Evaluation
from dmgal.episodes.evaluation.accuracy import Answers, normal_or_t_quantile
from dmgal.episodes.evaluation.statistics import (
    accuracy_by_class,
    bootstrap_over_classes,
    confusion,
    difference,
    interval_of_mean,
    spread_over_runs,
    strongest_disagreements,
)

CLASSES, WAYS = 8, 4
LABELS = [c for c in range(CLASSES) for _ in range(6)]
SAMPLER = EpisodeSampler(LABELS, WAYS, 1, 2, 400, seed=0)


def method(rates: list[float], seed: int) -> Evaluation:
    """Answer correctly at the rate of the query's class, and otherwise with another class of the episode."""
    generator = torch.Generator().manual_seed(seed)
    rows, accuracies, offered = [], [], []
    for number, task in enumerate(SAMPLER):
        offered.append(task.classes)
        right = []
        for video, label in zip(task.query, task.query_labels, strict=True):
            truth = task.classes[label]
            is_right = torch.rand((), generator=generator) < rates[truth]
            predicted = truth if is_right else task.classes[(label + 1) % WAYS]
            rows.append((number, video, truth, predicted))
            right.append(float(is_right))
        accuracies.append(sum(right) / len(right))
    columns = torch.tensor(rows, dtype=torch.int32).T
    return Evaluation(
        torch.tensor(accuracies, dtype=torch.float64), "these", Answers(*columns, offered=torch.tensor(offered))
    )


LOW, HIGH = [0.4] * CLASSES, [0.5 + 0.05 * c for c in range(CLASSES)]


def test_runs_are_averaged_before_pairing() -> None:
    ones, others = [method(HIGH, seed) for seed in (1, 2, 3)], [method(LOW, seed) for seed in (4, 5)]
    found = difference(ones, others)
    means = [torch.stack([run.accuracies for run in runs]).mean(0) for runs in (ones, others)]
    assert found == Estimate.of(means[0] - means[1])
    assert found.mean == pytest.approx(27.5, abs=3) and difference(ones, ones) == Estimate(0.0, 0.0)
    spread = spread_over_runs(ones)
    assert spread.mean == pytest.approx(sum(spread.values) / 3) and 0 < spread.deviation < 5
    assert spread_over_runs(ones[:1]).deviation is None


def test_accuracy_by_class_equals_class_rates() -> None:
    found = accuracy_by_class([method(HIGH, seed) for seed in (1, 2, 3)])
    assert sorted(found) == list(range(CLASSES))
    assert [found[c] for c in range(CLASSES)] == pytest.approx([100 * rate for rate in HIGH], abs=5)


def test_bootstrap_width_reflects_class_differences() -> None:
    ones, others = [method(HIGH, 1)], [method(LOW, 4)]
    found = bootstrap_over_classes(ones, others)
    assert found.low < found.mean < found.high
    by_class = [
        a - b for a, b in zip(accuracy_by_class(ones).values(), accuracy_by_class(others).values(), strict=True)
    ]
    assert found.mean == pytest.approx(sum(by_class) / CLASSES)
    error = torch.tensor(by_class).std().item() / CLASSES**0.5
    assert found.high - found.low == pytest.approx(2 * normal_or_t_quantile(CLASSES - 1) * error, rel=0.15)
    same = bootstrap_over_classes([method([0.5] * CLASSES, 1)], [method([0.5] * CLASSES, 1)])
    assert (same.low, same.mean, same.high) == (0, 0, 0)
    assert found == bootstrap_over_classes(ones, others)


@pytest.mark.parametrize("count", [5, 10, 24])
@pytest.mark.parametrize("name", DIFFERENCES)
@pytest.mark.slow
def test_interval_over_classes_has_nominal_coverage(name, count) -> None:
    draw, mean = DIFFERENCES[name]
    assert 92 < coverage_over_classes(draw, mean, count, 1000, 500) < 97.5


def test_interval_is_that_of_the_studentized_bootstrap() -> None:
    values = np.array([0.0, 1.0, 1.5, 2.0, 4.0, 9.0])
    found, mean, error = interval_of_mean(values, resamples=500, seed=7), values.mean(), stdev(values) / 6**0.5
    drawn = values[np.random.default_rng(7).integers(6, size=(500, 6))]
    ratios = [(np.mean(sample) - mean) / (stdev(sample) / 6**0.5) for sample in drawn if len({*sample}) > 1]
    low, high = np.percentile(ratios, [2.5, 97.5])
    assert found.mean == mean
    assert (found.low, found.high) == (pytest.approx(mean - high * error), pytest.approx(mean - low * error))


def test_interval_over_few_classes() -> None:
    one, two, alike = (interval_of_mean(np.array(values)) for values in ([3.0], [1.0, 3.0], [2.0] * 6))
    assert (one.mean, one.low, one.high) == (3, -math.inf, math.inf)
    assert two.high == pytest.approx(2 + 12.7062047362) and two.low == pytest.approx(2 - 12.7062047362)
    assert (alike.low, alike.mean, alike.high) == (2, 2, 2)


def test_confusion_counts_chosen_and_offered() -> None:
    run = method(LOW, 1)
    chosen, offered = confusion([run, run], CLASSES)
    assert chosen.sum() == 2 * len(run.answers.video) and offered.sum() == WAYS * chosen.sum()
    assert (chosen <= offered).all() and (offered.diagonal() == chosen.sum(1)).all()
    first = next(iter(SAMPLER))
    assert all(offered[a, b] > 0 for a in first.classes for b in first.classes)


def test_strongest_disagreements_come_first() -> None:
    one, other = method(HIGH, 1), method(LOW, 4)
    found = strongest_disagreements([one], [other], 12)
    gaps = (one.accuracies - other.accuracies).abs()
    assert [abs(f.difference) for f in found] == pytest.approx((100 * gaps.sort(descending=True).values[:12]).tolist())
    for disagreement in found:
        rows = (one.answers.episode == disagreement.episode) & (one.answers.predicted != other.answers.predicted)
        assert list(disagreement.places) == rows.nonzero().flatten().tolist() != []
    assert strongest_disagreements([one], [one]) == []


def test_different_episodes_raise() -> None:
    one = method(LOW, 1)
    with pytest.raises(ValueError, match="different episodes"):
        difference([one], [Evaluation(one.accuracies, "others", one.answers)])
    with pytest.raises(ValueError, match="without answers"):
        accuracy_by_class([Evaluation(one.accuracies, "these")])
