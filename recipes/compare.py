"""Puts runs side by side on the same episodes, with their paired differences.

    dmgal compare runs/frozen runs/smga runs/dmgal_adapter --shots 1

The difference to the first run is paired: episode by episode, on the same videos, so it is far sharper than the
intervals of the two accuracies. It speaks of these trained models and these classes; to compare methods, train each
with several seeds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from dmgal.episodes import Evaluation, paired_difference
from dmgal.errors import DmgalError
from dmgal.recipes.build import build_catalog, count_parameters, visual_tower_parameters
from dmgal.recipes.entry import as_description, run_recipe
from dmgal.recipes.evaluate import Protocol, as_json, load_run, measure
from dmgal.recipes.runs import Run, environment, write_text
from dmgal.recipes.table import Row, as_text


@dataclass(frozen=True)
class Compare:
    """Options of the command."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs; the first is what the others are compared with."""
    protocol: tyro.conf.OmitArgPrefixes[Protocol] = field(default_factory=Protocol)
    out: Path | None = None
    """Write the numbers here as JSON, too."""
    quiet: bool = False
    """No progress bars."""


def compare(folders: Sequence[Path], protocol: Protocol, progress: bool = True) -> list[Row]:
    """One row per run, all on the same episodes of the same data."""
    rows: list[Row] = []
    first: dict[str, Evaluation] | None = None
    for folder in folders:
        run = Run(folder)
        recipe, recognizer = load_run(run)
        catalog = build_catalog(recipe.data, progress=progress)
        evaluations = measure(recognizer, recipe, catalog, protocol, progress)
        first = first or evaluations
        if {name: e.episodes for name, e in first.items()} != {name: e.episodes for name, e in evaluations.items()}:
            raise DmgalError(
                "Runs can only be compared on the same episodes.",
                received=f"{folder}: other classes or videos than {folders[0]}",
                expected="runs on the same data set, ways and shots",
                remedy="compare runs with the same data.root, and pass --ways and --shots where they differ",
            )
        rows.append(
            Row(
                name=folder.name,
                evaluations=evaluations,
                difference=paired_difference(evaluations["accuracy"], first["accuracy"]),
                trained_parameters=count_parameters(recognizer, trained_only=True) if recipe.train.steps else 0,
                tower_parameters=visual_tower_parameters(recognizer),
                saved_bytes=run.trained_bytes() if recipe.train.steps else 0,
                cost=run.training_cost(),
            )
        )
    return rows


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


def main(argv: list[str] | None = None) -> int | None:
    """Compare the runs of a command line."""
    options = tyro.cli(
        Compare, prog="dmgal compare", args=sys.argv[1:] if argv is None else argv, description=as_description(__doc__)
    )
    if not options.runs:
        raise DmgalError(
            "Nothing to compare.", received="no run", expected="folders of runs", remedy="dmgal compare RUN RUN ..."
        )
    rows = compare(options.runs, options.protocol, progress=not options.quiet)
    print(as_text(rows))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        numbers = {"protocol": vars(options.protocol), "rows": rows_as_json(rows), "environment": environment()}
        write_text(options.out, json.dumps(numbers, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    run_recipe(main)
