"""Comparison of runs on the same episodes, with paired differences.

    dmgal compare runs/frozen runs/smga runs/dmgal_adapter --shots 1
    dmgal compare runs/one_seed0 runs/one_seed1 runs/one_seed2 runs/other_seed0 runs/other_seed1 runs/other_seed2

The difference to the first run is paired episode by episode on the same videos. Its interval is therefore much
narrower than those of the two accuracies. It holds for these trained models and these classes. Runs whose recipes
differ only in train.seed form one method. Each method is compared with the first: spread over seeds, bootstrap over
classes, classes that gained and lost most, and episodes with the largest disagreement. The full tables are written to
the JSON file of --out and the web page of --page.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.evaluation import Evaluation, paired_difference
from dmgal.errors import DmgalError
from dmgal.io import printable
from dmgal.recipes.reports.comparison import Method, Pairing, grouped, methods_as_json, methods_as_text, paired
from dmgal.recipes.reports.page import comparison_page
from dmgal.recipes.reports.table import Row, as_text
from dmgal.recipes.run.build import count_parameters, visual_tower_parameters
from dmgal.recipes.run.cli_errors import as_description, run_recipe
from dmgal.recipes.run.config import DataOverrides, Recipe
from dmgal.recipes.run.data import build_catalog
from dmgal.recipes.run.encoding import Keep, Kept, launched_processes
from dmgal.recipes.run.evaluation import Protocol, as_json, encode, evaluate_tasks, load_run, samplers
from dmgal.recipes.run.folder import Run, environment, json_text, write_text
from dmgal.videos import VideoCatalog


@dataclass(frozen=True)
class Compare:
    """Options of the command."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs. The others are compared with the first."""
    protocol: tyro.conf.OmitArgPrefixes[Protocol] = field(default_factory=Protocol)
    out: Path | None = None
    """JSON file for the results."""
    page: Path | None = None
    """HTML file for the results, with all per-class and confusion tables."""
    states: Kept = "disk"
    """Storage of the encoded videos, see dmgal evaluate. float16 is INEXACT."""
    cache: Path | None = None
    """Folder for the encoded videos, with a subfolder per run by its full path. None: RUN/states."""
    disagreements: int = 5
    """Number of episodes to list in which two methods disagree most."""
    data: DataOverrides = field(default_factory=DataOverrides)
    quiet: bool = False
    """Hide progress bars."""


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


def _page(found: Comparison, options: Compare) -> str:
    protocol, episode = options.protocol, found.recipe.episode
    ways, shots = protocol.n_way or episode.n_way, protocol.k_shot or episode.k_shot
    episodes = len(found.rows[0].evaluations["accuracy"].accuracies)
    summary = f"{ways}-way {shots}-shot accuracy on {protocol.split} classes, {episodes:,} episodes, the same for all."
    summary += " INEXACT: states were stored as float16." if options.states == "float16" else ""
    return comparison_page(found.rows, found.methods, found.pairings, found.catalog, summary)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def main(argv: list[str] | None = None) -> int | None:
    """Compare the runs named on the command line."""
    options = tyro.cli(
        Compare, prog="dmgal compare", args=sys.argv[1:] if argv is None else argv, description=as_description(__doc__)
    )
    if not options.runs:
        raise DmgalError(
            "No runs to compare.", received="no run", expected="folders of runs", remedy="Run dmgal compare RUN RUN ..."
        )
    protocol, progress = options.protocol, not options.quiet
    found = compare_in_depth(
        options.runs, protocol, progress, options.states, options.disagreements, options.data, options.cache
    )
    if found is None:
        return 0
    sampler = samplers(found.catalog, found.recipe, protocol)["accuracy"]
    numbers: dict[str, Any] = {"protocol": vars(protocol), "rows": rows_as_json(found.rows)}
    numbers |= methods_as_json(found.methods, found.pairings, found.catalog, sampler)
    if options.states == "float16":
        numbers["inexact"] = "states were kept as float16"
    if options.out:  # before printing, so that a closed pipe does not lose the results
        _write(options.out, json_text({**numbers, "environment": environment()}))
    if options.page:
        _write(options.page, _page(found, options))
    print(as_text(found.rows))
    print(methods_as_text(found.methods, found.pairings, found.catalog))
    if options.states == "float16":
        print("INEXACT: states were stored as float16. Predictions may differ from those of exact states.")
    return 0


if __name__ == "__main__":
    run_recipe(main)
