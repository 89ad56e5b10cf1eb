"""Comparison of runs on the same episodes of the same data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.evaluation import Evaluation, paired_difference
from dmgal.errors import DmgalError
from dmgal.files import printable
from dmgal.recipes.reports.comparison import Method, Pairing, grouped, paired
from dmgal.recipes.reports.table import Row
from dmgal.recipes.run.build import count_parameters, visual_tower_parameters
from dmgal.recipes.run.config import DataOverrides, Recipe
from dmgal.recipes.run.data import build_catalog
from dmgal.recipes.run.encoding import Keep, Kept, launched_processes
from dmgal.recipes.run.evaluation import Protocol, as_json, encode, evaluate_tasks, load_run
from dmgal.recipes.run.folder import Run
from dmgal.videos import VideoCatalog


@dataclass(frozen=True)
class Comparison:
    """Results on the same episodes: one row per run, the methods, and each method paired with the first."""

    rows: list[Row]
    methods: list[Method]
    pairings: list[Pairing]
    catalog: VideoCatalog
    recipe: Recipe
    """Recipe of the first run."""


def compare(folders: Sequence[Path], protocol: Protocol, progress: bool = True) -> list[Row]:
    """Return one row per run, all on the same episodes of the same data."""
    comparison = compare_in_depth(folders, protocol, progress)
    return comparison.rows if comparison else []


def compare_in_depth(
    folders: Sequence[Path],
    protocol: Protocol,
    progress: bool = True,
    states: Kept = "disk",
    disagreements: int = 5,
    data: DataOverrides | None = None,
    cache: Path | None = None,
) -> Comparison | None:
    """Return the full comparison. Return None on all ranks but 0, which only help to encode and evaluate."""
    data = data or DataOverrides()
    processes = launched_processes()
    rows: list[Row] = []
    recipes: list[Recipe] = []
    catalogs: list[VideoCatalog] = []
    for folder in folders:
        recipe, recognizer = load_run(Run(folder))
        recipe = data.over(recipe)
        catalog = build_catalog(recipe.data, progress and not processes.rank, Run(folder).split)
        states_folder = folder / "states" if cache is None else cache.joinpath(*folder.resolve().parts[1:])
        keep = Keep(states, states_folder, processes)
        encoded = encode(recognizer, recipe, catalog, protocol, progress, keep)
        first = rows[0].evaluations if rows else None
        evaluations = evaluate_tasks(recognizer, recipe, encoded, protocol, progress and not processes.rank, like=first)
        _check_same_episodes(first or evaluations, evaluations, folder, folders[0])
        rows.append(_row(Run(folder), recipe, recognizer, evaluations, first or evaluations))
        recipes.append(recipe)
        catalogs.append(encoded.catalog)
    if processes.rank:
        return None
    methods = grouped([row.name for row in rows], recipes, [row.evaluations["accuracy"] for row in rows])
    pairings = [paired(method, methods[0], disagreements) for method in methods[1:]]
    return Comparison(rows, methods, pairings, catalogs[0], recipes[0])


def _row(
    run: Run,
    recipe: Recipe,
    recognizer: FewShotRecognizer,
    evaluations: Mapping[str, Evaluation],
    first: Mapping[str, Evaluation],
) -> Row:
    return Row(
        name=printable(run.folder.name),
        evaluations=evaluations,
        difference=paired_difference(evaluations["accuracy"], first["accuracy"]),
        trained_parameters=count_parameters(recognizer, trained_only=True) if recipe.train.steps else 0,
        tower_parameters=visual_tower_parameters(recognizer),
        saved_bytes=run.trained_bytes() if recipe.train.steps else 0,
        cost=run.training_cost(),
    )


def _check_same_episodes(
    first: Mapping[str, Evaluation], evaluations: Mapping[str, Evaluation], folder: Path, first_folder: Path
) -> None:
    if {name: e.episodes for name, e in first.items()} != {name: e.episodes for name, e in evaluations.items()}:
        raise DmgalError(
            "Runs can only be compared on the same episodes.",
            received=f"{folder}: other classes or videos than {first_folder}",
            expected="runs on the same data set, ways and shots",
            remedy="Compare runs with the same data.root. Pass --ways and --shots if theirs differ.",
        )


def rows_as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the values of the table."""
    return [
        {
            "run": row.name,
            "results": as_json(row.evaluations),
            "difference_to_first": {
                "points": round(row.difference.mean, 3),
                "half_width": round(row.difference.half_width, 3),
            },
            "trained_parameters": row.trained_parameters,
            "visual_tower_parameters": row.tower_parameters,
            "saved_bytes": row.saved_bytes,
            **row.cost,
        }
        for row in rows
    ]
