"""Reproduction of a data set's published numbers: check its videos, train several seeds per method, test, and report.

    dmgal reproduce ssv2_small --root DOWNLOAD --plan     only state the time, disk and memory
    dmgal reproduce ssv2_small --root DOWNLOAD            run, or resume
    dmgal reproduce my_videos --backbone tiny-clip        the same for a folder of videos

The videos are matched and checked as by ``dmgal prepare``. Each training is a cell of the matrix of ``dmgal bench``.
The same command resumes, and a finished seed never trains again. A seed that fails leaves its status while the others
continue. OUT/reproduction.json has the accuracies with intervals over seeds, seeds, commands, memory, seconds and run
folders. OUT/reproduction.md shows them beside the published numbers and their sources.
"""

from __future__ import annotations

import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

import tyro

from dmgal.bench.matrix.experiment import Experiment, experiment_as_json, experiment_from
from dmgal.bench.matrix.plan import plan_of
from dmgal.bench.matrix.runner import Runner, notices
from dmgal.bench.prepared_videos import checking_cost, is_prepared, prepare_videos
from dmgal.bench.reproduction import ADAPTERS, CLIP, METHODS, write_record
from dmgal.files import printable, write_text
from dmgal.recipes.run.cli_errors import parse_options, resumable, run_recipe
from dmgal.recipes.run.folder import json_text
from dmgal.recipes.run.ranges import STEPS, TASKS, WORKERS, Range
from dmgal.videos.catalog.lists import StandardSplit


@dataclass(frozen=True)
class Reproduce:
    """Options of the command."""

    data: tyro.conf.Positional[str]
    """ssv2_small, ssv2_full, kinetics100, hmdb51, ucf101, or a folder of your videos with classes and splits."""
    root: Path | None = None
    """Folder of your download, in any layout. None: data/ and the name of the data set."""
    out: Path | None = None
    """Folder of the checked lists, runs and results. None: reproduced/ and the name of the data set."""
    backbone: str = CLIP
    """Backbone of all methods, see docs/backbones.md."""
    methods: tuple[str, ...] | None = None
    """Names of method layers. None: those that have been published with this backbone, and their baselines."""
    layers: tuple[str, ...] = ()
    """Recipe layers of yours below the methods, such as the precision."""
    steps: Annotated[int, Range(1, STEPS)] = 10_000
    """Training steps of every method that trains."""
    ways: Annotated[int, Range(2, TASKS)] = 5
    """Classes per task."""
    shots: tuple[Annotated[int, Range(1, TASKS)], ...] = (1, 5)
    """Support videos per class. Each number has its own trainings and is tested with the same number."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the trainings."""
    episodes: Annotated[int, Range(2, 10**8)] = 10_000
    """Number of test episodes."""
    processes: Annotated[int, Range(1, WORKERS)] = 1
    """Number of trainings that run at the same time."""
    plan: bool = False
    """Only list the trainings and their estimated time, memory and disk."""
    retry: bool = False
    """Also train the seeds again that failed, diverged or ran out of memory."""
    quiet: bool = False
    """Hide progress."""

    @property
    def dataset(self) -> StandardSplit | None:
        """The standard data set, or None for a folder of videos."""
        return next((name for name in get_args(StandardSplit) if name == self.data), None)

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.data if self.dataset else Path(self.data).resolve().name

    @property
    def videos(self) -> Path:
        """Folder of the videos."""
        return (self.root or Path("data", self.data)) if self.dataset else Path(self.data)

    @property
    def folder(self) -> Path:
        """Folder of the results."""
        return self.out or Path("reproduced", self.name)


def experiment_of(options: Reproduce, layer: Path) -> Experiment:
    """Return the matrix of the trainings on the data of a layer. Bad videos are skipped, and the record counts them."""
    train = {"steps": options.steps, "validate_every": max(1, options.steps // 10)}
    return experiment_from({
        "name": options.name,
        "layers": [str(layer), *options.layers],
        "recipe": {"data": {"on_bad_video": "skip"}, "train": train, "episode": {"n_way": options.ways}},
        "backbones": [options.backbone],
        "methods": METHODS.get(options.backbone, ADAPTERS) if options.methods is None else options.methods,
        "shots": options.shots,
        "test_shots": options.shots,
        "seeds": options.seeds,
        "episodes": options.episodes,
    })  # fmt: skip


def plan(options: Reproduce) -> str:
    """Return the trainings with their estimated cost, and the time of the check. Nothing is written to the folder."""
    prepared = options.folder / "prepared"
    with tempfile.TemporaryDirectory() as temporary:
        is_checked = is_prepared(prepared, options.videos)
        folder = prepared if is_checked else Path(temporary)
        if not is_checked:
            prepare_videos(options.dataset, options.videos, folder, check=False, quiet=options.quiet)
        experiment = experiment_of(options, folder / "data.yaml")
        text = plan_of(Runner(experiment, options.folder, options.processes, options.retry, quiet=True))
        return text if is_checked else f"{text}\nbefore, {checking_cost(folder)}"


def run(options: Reproduce, command: str) -> int:
    """Run or resume a reproduction, write its record, and print the table.

    ``command`` is stored in the record, which also has the rows of earlier commands with the same folder.
    """
    out = options.folder
    with resumable():
        summary = prepare_videos(options.dataset, options.videos, out / "prepared", quiet=options.quiet)
        experiment = experiment_of(options, out / "prepared" / "data.yaml")
        runner = Runner(experiment, out, options.processes, options.retry, options.quiet)
        write_text(out / "experiment.json", json_text(experiment_as_json(experiment)))
        found = runner.run()
    print(write_record(runner, options.name, summary, command), end="")
    for line in notices(runner, list(found.values())):
        print(line)
    print(f"results: {printable(str(out / 'reproduction.json'))}")
    return 0


def main(argv: list[str] | None = None) -> int | None:
    """Reproduce the published numbers of a data set, or plan it."""
    options = parse_options(Reproduce, argv, "reproduce", __doc__)
    if options.plan:
        print(plan(options))
        return 0
    return run(options, shlex.join(["dmgal", "reproduce", *(argv or ())]))


if __name__ == "__main__":
    run_recipe(main)
