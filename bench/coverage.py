"""Coverage of the 95 % intervals over episodes and over classes in simulations with known means.

    python -m dmgal.bench.coverage

Intervals over episodes are computed for accuracies of episodes with five queries. Intervals over classes are computed
for normal and for skewed differences. Each is repeated thousands of times; the interval should contain the true mean in
95 % of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from dmgal.bench.measuring import hardware, write_report
from dmgal.episodes.evaluation.accuracy import Estimate
from dmgal.episodes.evaluation.statistics import interval_of_mean

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Floats]
QUERIES = 5
EPISODES = (2, 5, 10, 50, 1000)
CLASSES = (5, 10, 24)
DIFFERENCES: dict[str, tuple[Draw, float]] = {
    "normal": (lambda draw, size: draw.normal(size=size), 0.0),
    "skewed (gamma, shape 2)": (lambda draw, size: draw.gamma(2.0, size=size), 2.0),
    "skewed (lognormal, sigma 0.5)": (lambda draw, size: draw.lognormal(0.0, 0.5, size=size), math.exp(0.125)),
    "very skewed (exponential)": (lambda draw, size: draw.exponential(size=size), 1.0),
}


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    repeats: int = 4000
    """Simulations per case."""
    resamples: int = 2000
    """Resamples of a bootstrap."""
    out: Path = Path("bench/results/coverage.json")
    """File for the results."""


def coverage_over_episodes(accuracy: float, count: int, repeats: int) -> float:
    """Return the percentage of intervals that contain the accuracy. Its logit differs between episodes."""
    draw = np.random.default_rng(0)
    share = draw.beta(10 * accuracy, 10 * (1 - accuracy), size=(repeats, count))
    accuracies = torch.from_numpy(draw.binomial(QUERIES, share) / QUERIES)
    found = [Estimate.of_accuracies(values) for values in accuracies]
    return 100 * sum(abs(one.mean - 100 * accuracy) <= one.half_width for one in found) / repeats


def coverage_over_classes(draw_values: Draw, mean: float, count: int, repeats: int, resamples: int) -> float:
    """Return the percentage of intervals over ``count`` classes that contain the mean."""
    values = draw_values(np.random.default_rng(0), (repeats, count))
    found = [interval_of_mean(row, resamples, seed) for seed, row in enumerate(values)]
    return 100 * sum(one.low <= mean <= one.high for one in found) / repeats


def main(argv: list[str] | None = None) -> None:
    """Simulate, print and write all coverages."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    episodes = {
        f"accuracy {accuracy:.0%}": {
            str(count): round(coverage_over_episodes(accuracy, count, options.repeats), 1) for count in EPISODES
        }
        for accuracy in (0.5, 0.8)
    }
    classes = {
        name: {
            str(count): round(coverage_over_classes(draw, mean, count, options.repeats, options.resamples), 1)
            for count in CLASSES
        }
        for name, (draw, mean) in DIFFERENCES.items()
    }
    for title, table in (("episodes", episodes), ("classes", classes)):
        for name, row in table.items():
            print(f"{title}, {name}: " + ", ".join(f"{count}: {percent:.1f} %" for count, percent in row.items()))
    report = {"repeats": options.repeats, "over_episodes": episodes, "over_classes": classes, "hardware": hardware()}
    write_report(report, options.out, show=False)


if __name__ == "__main__":
    main()
