"""Puts runs side by side on the same episodes, with their paired differences.

    dmgal compare runs/frozen runs/smga runs/dmgal_adapter --shots 1
    dmgal compare runs/one_seed0 runs/one_seed1 runs/one_seed2 runs/other_seed0 runs/other_seed1 runs/other_seed2

The difference to the first run is paired: episode by episode, on the same videos, so it is far sharper than the
intervals of the two accuracies. It speaks of these trained models and these classes. Runs whose recipes differ in
train.seed alone are one method: below the table, each method is set against the first, with the spread over seeds, a
bootstrap over classes, the classes that gained and lost most, and the episodes where the two disagree most. All tables
whole are in the JSON of --out and on the web page of --page.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from dmgal.episodes import Evaluation, FewShotRecognizer, VideoCatalog, paired_difference
from dmgal.episodes.listing import printable
from dmgal.errors import DmgalError
from dmgal.recipes.build import build_catalog, count_parameters, visual_tower_parameters
from dmgal.recipes.comparison_page import comparison_page
from dmgal.recipes.config import Recipe
from dmgal.recipes.data_overrides import DataOverrides
from dmgal.recipes.encoded import Keep, Kept, launched_processes
from dmgal.recipes.entry import as_description, run_recipe
from dmgal.recipes.evaluate import Protocol, as_json, encode, evaluate_tasks, load_run, samplers
from dmgal.recipes.methods import Method, Pairing, grouped, methods_as_json, methods_as_text, paired
from dmgal.recipes.runs import Run, environment, json_text, write_text
from dmgal.recipes.table import Row, as_text


@dataclass(frozen=True)
class Compare:
    """Options of the command."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs; the first is what the others are compared with."""
    protocol: tyro.conf.OmitArgPrefixes[Protocol] = field(default_factory=Protocol)
    out: Path | None = None
    """Write the numbers here as JSON, too."""
    page: Path | None = None
    """Write everything here as a web page, too: per-class and confusion tables whole."""
    states: Kept = "disk"
    """Where the videos' states are kept, see dmgal evaluate; float16 is INEXACT."""
    cache: Path | None = None
    """Another folder for the states than RUN/states; in it each run has one by the run's whole path."""
    disagreements: int = 5
    """How many episodes to name in which two methods disagree most."""
    data: DataOverrides = field(default_factory=DataOverrides)
    quiet: bool = False
    """No progress bars."""


@dataclass(frozen=True)
class Comparison:
    """Runs on the same episodes: a row for each, methods of one or several runs, and each method against the first."""

    rows: list[Row]
    methods: list[Method]
    pairings: list[Pairing]
    catalog: VideoCatalog
    recipe: Recipe
    """Of the first run."""


def compare(folders: Sequence[Path], protocol: Protocol, progress: bool = True) -> list[Row]:
    """One row per run, all on the same episodes of the same data."""
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
    """All that the command tells; None in a process that only helped to encode."""
    data = data or DataOverrides()
    processes = launched_processes()
    rows: list[Row] = []
    recipes: list[Recipe] = []
    catalogs: list[VideoCatalog] = []
    for folder in folders:
        recipe, recognizer = load_run(Run(folder))
        recipe = data.over(recipe)
        catalog = build_catalog(recipe.data, progress and not processes.rank, Run(folder).split)
        kept_in = folder / "states" if cache is None else cache.joinpath(*folder.resolve().parts[1:])
        keep = Keep(states, kept_in, processes)
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
            remedy="compare runs with the same data.root, and pass --ways and --shots where they differ",
        )


def rows_as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The numbers of the table."""
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
    summary += " INEXACT: states were kept as float16." if options.states == "float16" else ""
    return comparison_page(found.rows, found.methods, found.pairings, found.catalog, summary)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def main(argv: list[str] | None = None) -> int | None:
    """Compare the runs of a command line."""
    options = tyro.cli(
        Compare, prog="dmgal compare", args=sys.argv[1:] if argv is None else argv, description=as_description(__doc__)
    )
    if not options.runs:
        raise DmgalError(
            "Nothing to compare.", received="no run", expected="folders of runs", remedy="dmgal compare RUN RUN ..."
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
    if options.out:  # before anything is printed: whatever becomes of that, the numbers are there
        _write(options.out, json_text({**numbers, "environment": environment()}))
    if options.page:
        _write(options.page, _page(found, options))
    print(as_text(found.rows))
    print(methods_as_text(found.methods, found.pairings, found.catalog))
    if options.states == "float16":
        print("INEXACT: states were kept as float16; predictions may differ from those of exact states")
    return 0


if __name__ == "__main__":
    run_recipe(main)
