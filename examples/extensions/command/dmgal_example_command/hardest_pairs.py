"""Pairs of classes that a run confuses most, on episodes of its novel classes.

    dmgal hardest-pairs runs/mine
    dmgal hardest-pairs runs/mine --pairs 5 --shots 5 --split val

A rate is the share of the queries of both classes that were taken for the other class, in tasks with both. Videos are
encoded once and cached, as by ``dmgal evaluate``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro

from dmgal.episodes.evaluation.statistics import confusion
from dmgal.recipes.run.cli_errors import parse_options
from dmgal.recipes.run.config import DataOverrides
from dmgal.recipes.run.encoding import Keep
from dmgal.recipes.run.evaluation import Protocol, encode, evaluate_tasks, evaluation_data, load_run
from dmgal.recipes.run.folder import Run
from dmgal.recipes.run.ranges import TASKS, Range


@dataclass(frozen=True)
class HardestPairs:
    """Options of the command."""

    run: tyro.conf.Positional[Path]
    """Folder of a run, written by dmgal train."""
    pairs: Annotated[int, Range(1, TASKS)] = 10
    """Number of pairs to print."""
    protocol: tyro.conf.OmitArgPrefixes[Protocol] = field(default_factory=lambda: Protocol(episodes=2000))
    data: DataOverrides = field(default_factory=DataOverrides)
    quiet: bool = False
    """Hide progress bars."""


class Pair(NamedTuple):
    """Two classes, by index, with the number of queries that could be confused and of those that were."""

    one: int
    other: int
    offered: int
    confused: int

    @property
    def rate(self) -> float:
        """Share of confused queries."""
        return self.confused / self.offered


def hardest_pairs(chosen: np.ndarray, offered: np.ndarray) -> list[Pair]:
    """Return all pairs of classes that met in a task, the most confused ones first.

    Args:
        chosen: ``(num_classes, num_classes)``, how often a query of the row's class was taken for the column's class.
        offered: the same shape, how often the column's class was in the task of a query of the row's class.
    """
    both, wrong = offered + offered.T, chosen + chosen.T
    places = zip(*np.triu_indices(len(both), k=1), strict=True)
    pairs = [Pair(int(i), int(j), int(both[i, j]), int(wrong[i, j])) for i, j in places if both[i, j]]
    return sorted(pairs, key=lambda pair: -pair.rate)


def main(argv: list[str] | None = None) -> int:
    """Print the pairs of the run named on the command line."""
    options = parse_options(HardestPairs, argv, "hardest-pairs", __doc__)
    run, protocol, progress = Run(options.run), options.protocol, not options.quiet
    trained, recognizer = load_run(run)
    recipe, catalog = evaluation_data(run, trained, options.data, protocol.split, progress)
    keep = Keep("disk", options.run / "states")
    encoded = encode(recognizer, recipe, catalog, protocol, progress, keep)
    evaluation = evaluate_tasks(recognizer, recipe, encoded, protocol, progress)["accuracy"]
    names = encoded.catalog.class_names
    pairs = hardest_pairs(*confusion([evaluation], len(names)))[: options.pairs]
    print(f"{options.run}: {protocol.split} classes, {protocol.episodes} episodes, {evaluation.accuracy} % correct")
    for pair in pairs:
        print(f"  {100 * pair.rate:5.1f} % of {pair.offered:5d}  {names[pair.one]} / {names[pair.other]}")
    return 0
