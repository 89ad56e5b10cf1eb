"""Results of a matrix on disk, and the check that one table has one machine and one version of the code.

OUT/experiment.json       the experiment
OUT/results/CELL.json     finished cells: done, failed, out of memory or diverged
OUT/temporary/CELL.json   the same from a checkout with uncommitted changes, which no commit reproduces
OUT/cancelled/CELL.json   cells that were stopped; the next call resumes them
OUT/runs/CELL/            run folders
OUT/logs/CELL.txt         output of each cell's process
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from dmgal.bench.matrix.experiment import Cell, Experiment
from dmgal.errors import differences, refuse_differences
from dmgal.files import read_mapping
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.layers import flat, set_apart, to_mapping

Status = Literal["done", "failed", "out of memory", "diverged", "cancelled"]
DONE: Status = "done"
FAILED: Status = "failed"
OUT_OF_MEMORY: Status = "out of memory"
DIVERGED: Status = "diverged"
CANCELLED: Status = "cancelled"
UNSUCCESSFUL: tuple[Status, ...] = (FAILED, OUT_OF_MEMORY, DIVERGED)
RESULTS, TEMPORARY, CANCELLED_FOLDER = "results", "temporary", "cancelled"
Result = dict[str, Any]
Kind = tuple[str, str, str, int]
"""Backbone, method, variant and shots in training of a cell."""


def origin(environment: Mapping[str, object]) -> dict[str, object]:
    """Return the parts of `environment` that all results of one table share: versions, commit and hardware."""
    return {key: value for key, value in environment.items() if key not in ("date", "command")}


def shared_recipe(recipe: Recipe) -> dict[str, object]:
    """Return a recipe for a result. Absolute paths are shortened to their last part."""
    return set_apart(to_mapping(recipe))[0]


def test_settings(experiment: Experiment) -> dict[str, object]:
    """Return the settings of the tests of all cells, without absolute paths."""
    shots, data = list(experiment.test_shots), to_mapping(experiment.tests)
    return {"shots": shots, "episodes": experiment.episodes, "data": set_apart(data)[0]}


def folder_for(meta: Mapping[str, object]) -> str:
    """Return the folder of results with this ``meta_info``."""
    return TEMPORARY if str(meta.get("git_revision") or "").endswith("-dirty") else RESULTS


def read_results(folder: Path) -> dict[str, Result]:
    """Return all results of a folder by the name of their cell.

    Raises:
        DmgalError: a file cannot be read.
    """
    paths = sorted(folder.glob("*.json")) if folder.is_dir() else []
    return {path.stem: read_result(path) for path in paths}


def read_result(path: Path) -> Result:
    """Return the result in a file. Raise a DmgalError if it cannot be read."""
    remedy = "Delete the file: its cell then runs again."
    return read_mapping(path, "A result of the benchmark cannot be read.", remedy)


def status(result: Result) -> Status:
    """Return the status of a result."""
    found: Status = result.get("train_info", {}).get("status", FAILED)
    return found


def check_one_origin(results: Mapping[str, Result], current: Mapping[str, object] | None = None) -> None:
    """Raise a DmgalError that names the differences if results are of several machines or versions of the code.

    Args:
        results: by the name of their cell.
        current: ``meta_info`` of this machine and code. None: compare the results with the first one.
    """
    if current is None:
        current = next((result.get("meta_info", {}) for result in results.values()), {})
    expected = dict(flat(current))
    for name, result in results.items():
        found = dict(flat(result.get("meta_info", {})))
        refuse_differences(
            differences(found, expected),
            f"One table cannot mix hardware or versions of the code: the result {name} has another origin.",
            "Use another --out for this machine and code, or delete the other results to run their cells again.",
        )


def check_same_settings(results: Mapping[str, Result], cells: Iterable[Cell], experiment: Experiment) -> None:
    """Raise a DmgalError if the result of a cell is of another recipe or of other tests."""
    for cell in cells:
        if cell.name in results:
            info = results[cell.name].get("run_info", {})
            saved = {"recipe": info.get("recipe", {}), "test": info.get("test", {})}
            now = {"recipe": shared_recipe(cell.recipe), "test": test_settings(experiment)}
            refuse_differences(
                differences(dict(flat(saved)), dict(flat(now))),
                f"The result of {cell.name} was measured with other settings.",
                "Use another --out, or delete this result and its run folder to run the cell again.",
            )


def by_kind(results: Iterable[Result]) -> dict[Kind, list[Result]]:
    """Group results by everything but the seed, in the order of the first of each kind."""
    groups: dict[Kind, list[Result]] = {}
    for result in results:
        cell = result["run_info"]["cell"]
        kind = cell["backbone"], cell["method"], cell["variant"], cell["shots"]
        groups.setdefault(kind, []).append(result)
    return groups
