"""One cell of a matrix, in a process of its own: train, test and measure it, and write its result.

    python -m dmgal.bench.matrix.cell JOB.json

The process trains and evaluates by the functions of ``dmgal train`` and ``dmgal evaluate``. A job that was stopped
resumes from the run's last checkpoint. The result has the layout of PEFT's method comparison: ``run_info``,
``train_info`` and ``meta_info``.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dmgal.bench.matrix.experiment import Cell, Experiment, experiment_as_json, experiment_from
from dmgal.bench.matrix.measurements import MemorySamples, encoding_throughput, operations, parameters, spread
from dmgal.bench.matrix.results import (
    DIVERGED,
    DONE,
    FAILED,
    OUT_OF_MEMORY,
    Status,
    origin,
    shared_recipe,
    test_settings,
)
from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.evaluation import Evaluation
from dmgal.errors import DmgalError, first_line
from dmgal.files import write_text
from dmgal.recipes import train
from dmgal.recipes.run.cli_errors import run_recipe
from dmgal.recipes.run.config import DataOverrides, Recipe
from dmgal.recipes.run.encoding import Keep
from dmgal.recipes.run.evaluation import (
    Protocol,
    as_json,
    evaluate_tasks,
    evaluation_data,
    load_run,
    seen_in_training,
)
from dmgal.recipes.run.folder import Run, environment, json_text
from dmgal.recipes.run.log import step_seconds, validations
from dmgal.recipes.run.probe import encode_for_both, evaluate_probe

STATES = "states"
"""Folder of a run with the states of the test videos, so that a stopped test resumes."""
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "Unable to allocate", "MemoryError")
"""Parts of the messages with which torch, numpy and the system refuse memory."""


@dataclass(frozen=True)
class Job:
    """A cell, the experiment that tests it, its run folder, and the file of its result."""

    experiment: Experiment
    cell: str
    run: Path
    result: Path

    def find(self) -> Cell:
        """Return the cell of this name."""
        return next(cell for cell in self.experiment.cells() if cell.name == self.cell)

    def write(self, path: Path) -> None:
        """Write the job for the process that runs it."""
        tree = {"experiment": experiment_as_json(self.experiment), "cell": self.cell}
        write_text(path, json_text({**tree, "run": str(self.run), "result": str(self.result)}))

    @staticmethod
    def read(path: Path) -> Job:
        """Return the job of a file."""
        tree = json.loads(path.read_text(encoding="utf-8"))
        return Job(experiment_from(tree["experiment"]), tree["cell"], Path(tree["run"]), Path(tree["result"]))


def run_cell(job: Job) -> dict[str, object]:
    """Train, test and measure a cell, and return its ``train_info``."""
    recipe, started = job.find().recipe, time.perf_counter()
    with MemorySamples() as memory:
        run = train.run(recipe, job.run, resume=(job.run / "recipe.yaml").exists(), quiet=True)
    trained, memory_of_training = time.perf_counter(), memory.as_json()
    recipe, recognizer = load_run(run)
    results, _ = novel_results(job.experiment, run, recipe, recognizer, DataOverrides())
    tested = time.perf_counter()
    tests = {
        name: novel_results(job.experiment, run, recipe, recognizer, data, name)
        for name, data in job.experiment.tests.items()
    }
    return {
        "status": DONE,
        "seed": recipe.train.seed,
        "steps": recipe.train.steps,
        "parameters": parameters(recognizer, recipe),
        "file_size": run.trained_bytes() if recipe.train.steps else 0,
        "gigaflops": operations(recognizer, recipe),
        "memory_mb": memory_of_training,
        "step_seconds": spread(step_seconds(run.log_entries())),
        "videos_per_second": encoding_throughput(recognizer, recipe),
        "seconds": {"training": round(trained - started, 2), "evaluation": round(tested - trained, 2)},
        "validation": validations(run.log_entries()),
        "results": results,
        "tests": {name: found for name, (found, _) in tests.items()},
        "seen_classes": {name: seen for name, (_, seen) in tests.items()},
    }


def novel_results(
    experiment: Experiment,
    run: Run,
    trained: Recipe,
    recognizer: FewShotRecognizer,
    data: DataOverrides,
    name: str = "own",
) -> tuple[dict[str, object], list[str]]:
    """Return the results on novel classes by number of shots, and the names of those that the training has seen.

    The results are of the run's own head and of the probe. All cells share the classes of other data. The states of the
    videos are in the folder ``name`` of the run.
    """
    folder = run.folder / STATES / name
    most = Protocol(episodes=experiment.episodes, k_shot=max(experiment.test_shots))
    recipe, catalog = evaluation_data(run, trained, data, most.split, progress=False, same_for_all=True)
    encoded, for_probe = encode_for_both(recognizer, recipe, catalog, most, Keep("disk", folder))
    results: dict[str, object] = {}
    for shots in experiment.test_shots:
        protocol = Protocol(episodes=experiment.episodes, k_shot=shots)
        evaluations = evaluate_tasks(recognizer, recipe, encoded, protocol, progress=False)
        found = with_answers(as_json(evaluations), evaluations)
        probe = evaluate_probe(recognizer, recipe, for_probe, protocol, progress=False, reversal=False)
        results[str(shots)] = {**found, "probe": as_json(probe)["accuracy"]}
    return results, seen_in_training(run, trained, catalog, most.split)


def with_answers(
    results: dict[str, dict[str, object]], evaluations: Mapping[str, Evaluation]
) -> dict[str, dict[str, object]]:
    """Add the number of correct queries of each episode as a text, for paired differences between cells."""
    for name, evaluation in evaluations.items():
        queries = len(evaluation.answers.episode) // len(evaluation.accuracies) if evaluation.answers else math.inf
        if queries < len(DIGITS):
            counts = (evaluation.accuracies * queries).round().int().tolist()
            results[name] |= {"queries": int(queries), "correct": "".join(DIGITS[count] for count in counts)}
    return results


def status_of(error: BaseException) -> Status:
    """Return the status of a cell that ended with this error."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, DmgalError) and error.problem == "Training diverged.":
        return DIVERGED
    is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or any(part in text for part in NO_MEMORY)
    return OUT_OF_MEMORY if is_memory else FAILED


def main(argv: list[str] | None = None) -> int:
    """Run the job of a file and write its result, also if it fails. Return 0."""
    words = sys.argv[1:] if argv is None else argv
    job, started, meta, error = Job.read(Path(words[0])), time.perf_counter(), environment(), ""
    try:
        info = run_cell(job)
    except Exception as failure:
        info, error = {"status": status_of(failure)}, str(failure) or first_line(failure)
        print(error, file=sys.stderr)
    write_result(job, info, error, meta, time.perf_counter() - started)
    if not error:
        shutil.rmtree(job.run / STATES, ignore_errors=True)  # gigabytes for some adapters, and never read again
    return 0


def write_result(job: Job, info: Mapping[str, object], error: str, meta: Mapping[str, object], seconds: float) -> None:
    """Write the result of a cell. Absolute paths of the recipe are shortened to their last part."""
    cell = job.find()
    run_info = {
        "created_at": meta["date"],
        "total_time": round(seconds, 2),
        "experiment_name": job.experiment.name,
        "cell": cell.as_json(),
        "test": test_settings(job.experiment),
        "recipe": shared_recipe(cell.recipe),
        "error_msg": error,
    }
    write_text(job.result, json_text({"run_info": run_info, "train_info": dict(info), "meta_info": origin(meta)}))


if __name__ == "__main__":
    run_recipe(main)  # also imports the plug-ins
