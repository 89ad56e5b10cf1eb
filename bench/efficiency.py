"""Parameter-efficiency benchmark: methods on the same backbone, data and episodes, with accuracy and cost together.

    dmgal bench experiment.json --out benchmark                    run or resume the matrix of an experiment
    dmgal bench experiment.json --plan                             only list its cells and their estimated cost
    dmgal bench --data my_videos --methods frozen lora dmgal_adapter --steps 400
    dmgal bench report benchmark                                   table, CSV and figures of the results
    dmgal bench report --check                                     exit with 1 if the documentation is stale

Each cell of the matrix is trained, tested and measured in its own process. Cells that fail, diverge or run out of
memory are reported as such, and the others continue. The same call resumes a stopped benchmark and never runs a
finished cell again. An experiment is a small JSON of differences to the bundled recipes, see docs/benchmark.md.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dmgal.bench import docs_tables
from dmgal.bench.matrix.experiment import Experiment, data_layer, experiment_as_json, experiment_from, read_experiment
from dmgal.bench.matrix.plan import plan_of
from dmgal.bench.matrix.report_folder import report_folder
from dmgal.bench.matrix.runner import Runner, notices
from dmgal.errors import DmgalError
from dmgal.files import printable, write_text
from dmgal.recipes.run.cli_errors import parse_options, resumable, run_recipe
from dmgal.recipes.run.folder import json_text
from dmgal.recipes.run.ranges import STEPS, TASKS, WORKERS, Range

METHODS = ("frozen", "lora", "dmgal_adapter")
"""Methods of a benchmark on a user's data, unless the user names others."""

DESCRIBED = ("root", "group", "backbone", "methods", "steps", "ways", "shots", "seeds", "test_shots", "episodes")
"""Options that describe an experiment on a user's data."""


@dataclass(frozen=True)
class Bench:
    """Options of the command."""

    experiment: tyro.conf.Positional[Path | None] = None
    """JSON file of an experiment. None: the options from --data to --episodes describe it."""
    out: Path = Path("benchmark")
    """Folder of results, runs and logs."""
    data: Path | None = None
    """Your videos: a folder of class folders, a CSV with the columns split, class_name and video, or a recipe layer
    (YAML)."""
    root: Path | None = None
    """Folder that the videos of the CSV are relative to. None: the folder of the CSV."""
    group: str | None = None
    """Support and query never share a group, such as a person: a column of the CSV, or a pattern, see docs/data.md."""
    backbone: tuple[str, ...] = ("tiny-clip",)
    """Backbones, see docs/backbones.md."""
    methods: tuple[str, ...] = METHODS
    """Names of method layers, see dmgal train --list."""
    steps: Annotated[int, Range(1, STEPS)] = 400
    """Training steps of every method that trains."""
    ways: Annotated[int, Range(2, TASKS)] = 5
    """Classes per task."""
    shots: tuple[Annotated[int, Range(1, TASKS)], ...] = (1,)
    """Support videos per class in training."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the trainings."""
    test_shots: tuple[int, ...] = (1, 5)
    """Support videos per class in tests."""
    episodes: Annotated[int, Range(2, 10**8)] = 2000
    """Number of test episodes."""
    processes: Annotated[int, Range(1, WORKERS)] = 1
    """Number of cells that run at the same time, each with its share of the cores."""
    plan: bool = False
    """Only list the cells and their estimated time, memory and disk."""
    retry: bool = False
    """Also run the cells again that failed, diverged or ran out of memory."""
    quiet: bool = False
    """Hide progress."""


def experiment_of(options: Bench) -> Experiment:
    """Return the experiment of a file, or the one that the options describe.

    Raises:
        DmgalError: there is both or neither, or the experiment is not valid.
    """
    if (options.experiment is None) == (options.data is None):
        raise DmgalError(
            "The benchmark needs one experiment.",
            received="a JSON file and --data" if options.data else "neither a JSON file nor --data",
            expected="a JSON file of an experiment, or your videos",
            remedy="Run dmgal bench EXPERIMENT.json, or dmgal bench --data FOLDER.",
        )
    if options.experiment is not None:
        _refuse_described(options)
        return read_experiment(options.experiment)
    assert options.data is not None
    train = {"steps": options.steps, "validate_every": max(1, options.steps // 2)}
    layers, data = data_layer(options.data, options.root, options.group)
    tree: dict[str, object] = {
        "name": options.data.stem,
        "layers": layers,
        "recipe": {"train": train, "episode": {"n_way": options.ways}, **data},
        "backbones": options.backbone,
        "methods": options.methods,
    }
    names = ("shots", "seeds", "test_shots", "episodes")
    return experiment_from(tree | {name: getattr(options, name) for name in names})


def _refuse_described(options: Bench) -> None:
    """Raise if options describe an experiment beside its file."""
    described = [field for field in DESCRIBED if getattr(options, field) != getattr(Bench(), field)]
    if described:
        flags = ", ".join(f"--{field.replace('_', '-')}" for field in described)
        raise DmgalError(
            "The experiment is described twice.",
            received=f"a JSON file and {flags}",
            expected="the file alone, with options such as --out and --processes that do not describe the experiment",
            remedy=f"Omit {flags}, or change a copy of the file.",
        )


def run(options: Bench) -> int:
    """Run, resume or only plan a benchmark, and print what failed."""
    experiment = experiment_of(options)
    runner = Runner(experiment, options.out, options.processes, options.retry, options.quiet)
    if options.plan:
        print(plan_of(runner))
        return 0
    runner.results()  # raises if they cannot be mixed, before anything is written
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / "experiment.json", json_text(experiment_as_json(experiment)))
    with resumable():
        found = runner.run()
    for line in notices(runner, list(found.values())):
        print(line)
    print(f"results: {printable(str(runner.results_folder))}\nnext: dmgal bench report {printable(str(options.out))}")
    return 0


@dataclass(frozen=True)
class Report:
    """Options of ``dmgal bench report``."""

    folder: tyro.conf.Positional[Path | None] = None
    """The --out folder of a benchmark. None: the tables and figures of the documentation."""
    check: bool = False
    """Write nothing. Exit with 1 and name each file that is stale."""


def main(argv: list[str] | None = None) -> int | None:
    """Run a benchmark, or report one."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["report"]:
        options = parse_options(Report, words[1:], "bench report", __doc__)
        if options.folder is None:
            return docs_tables.main(["--check"] if options.check else [])
        return report_folder(options.folder, options.check)
    return run(parse_options(Bench, words, "bench", __doc__))


if __name__ == "__main__":
    run_recipe(main)
