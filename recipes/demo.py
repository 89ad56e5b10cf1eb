"""Demo of the toolkit: generate videos, train and compare four methods, write a table and a web page.

    dmgal demo
    dmgal demo --out my_demo --seed 7

The videos are moving shapes, in which only motion distinguishes the classes. The backbone is tiny-clip, which was
trained on still images only. All methods share the head and the training episodes, and are tested on the same tasks
with unseen classes. Each method is trained by dmgal train in its own process. A stopped demo resumes where it was.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from dmgal.errors import DmgalError
from dmgal.files import write_text
from dmgal.recipes.reports.films import Films, most_different, show_task
from dmgal.recipes.reports.page import confusion_section, render, results_of
from dmgal.recipes.reports.runs import Comparison, Row, as_text, compare_in_depth, rows_as_json
from dmgal.recipes.run.cli_errors import parse_options, run_recipe
from dmgal.recipes.run.config import DataConfig
from dmgal.recipes.run.data import build_catalog
from dmgal.recipes.run.evaluation import Protocol, samplers
from dmgal.recipes.run.folder import environment, json_text
from dmgal.recipes.run.ranges import SEEDS, STEPS, Range

METHODS = ("frozen", "smga", "dmgal_adapter", "dmgal_ft")


@dataclass(frozen=True)
class Demo:
    """Options of the command."""

    out: Path = Path("demo")
    """Folder for videos, runs, table and web page."""
    seed: Annotated[int, Range(0, SEEDS)] = 0
    """Seed of the videos and of the class split. The recipes were chosen on the validation classes of seed 0."""
    train_seed: Annotated[int, Range(0, SEEDS)] = 0
    """Seed of the trainings."""
    steps: Annotated[int | None, Range(1, STEPS)] = None
    """Training steps of every method. None: those of the recipes."""
    episodes: Annotated[int, Range(2, 10**8)] = 2000
    """Number of test episodes, the same for every method."""
    quiet: bool = False
    """Hide progress bars."""


def run(options: Demo) -> list[Row]:
    """Generate data, train four methods, compare them, and write ``results.json`` and ``index.html``."""
    data = options.out / "moving_shapes"
    started = time.monotonic()
    print(f"1/3 videos: {data}", flush=True)
    build_catalog(DataConfig(root=data, generate="moving_shapes", seed=options.seed), progress=not options.quiet)
    generated = time.monotonic()
    for number, method in enumerate(METHODS, start=1):
        print(f"2/3 training {number} of {len(METHODS)}: {method}", flush=True)
        _train(method, data, options)
    print(f"3/3 comparing on {options.episodes} episodes of novel classes", flush=True)
    runs = [options.out / "runs" / method for method in METHODS]
    found = compare_in_depth(runs, Protocol(episodes=options.episodes), progress=not options.quiet)
    assert found is not None, "the demo runs in one process"
    seconds = {
        "videos": round(generated - started, 1),
        "training_and_evaluation": round(time.monotonic() - generated, 1),
    }
    _write(found, options, seconds)
    return found.rows


def _train(method: str, data: Path, options: Demo) -> None:
    """Train one method, or resume its run, in a separate process to measure its own peak memory."""
    out = options.out / "runs" / method
    words = ["demo", f"method/{method}", "data/moving_shapes"]
    flags = ["--data.root", str(data), "--data.seed", str(options.seed), "--train.seed", str(options.train_seed)]
    if options.steps is not None and method != "frozen":
        flags += ["--train.steps", str(options.steps)]
    if (out / "recipe.yaml").exists():
        flags.append("--resume")
    flags += ["--out", str(out), *(["--quiet"] if options.quiet else [])]
    code = subprocess.run([sys.executable, "-m", "dmgal.recipes.train", *words, *flags], check=False).returncode
    if code:
        raise DmgalError(
            "A training of the demo failed.",
            received=f"{method}: exit code {code}, see its message above",
            expected="exit code 0",
            remedy="Run the demo again to resume it, or pass another --out to start over.",
        )


def _write(found: Comparison, options: Demo, seconds: dict[str, float]) -> None:
    table = as_text(found.rows)
    print(f"\n5-way 1-shot, novel classes of moving shapes, data seed {options.seed}; ± is a 95 % interval")
    print(f"\n{table}")
    result = {"options": {**vars(options), "out": None}, "seconds": seconds, "rows": rows_as_json(found.rows)}
    write_text(options.out / "results.json", json_text({**result, "environment": environment()}))
    write_text(options.out / "index.html", page(found, options))
    print(f"\nvideos {seconds['videos']:.0f} s, training and evaluation {seconds['training_and_evaluation']:.0f} s")
    print(f"numbers: {options.out / 'results.json'}\npage:    {options.out / 'index.html'}")


def page(found: Comparison, options: Demo) -> str:
    """Return the web page: tasks with the answers of all methods, motions and reversals, results, what to do next."""
    films, protocol = Films(found.catalog), Protocol(episodes=options.episodes)
    sampler, rows = samplers(found.catalog, found.recipe, protocol)["accuracy"], found.rows
    number = max(range(len(rows)), key=lambda index: rows[index].evaluations["accuracy"].accuracy.mean)
    best = rows[number]
    chosen = most_different(rows)
    tasks = [show_task(films, rows, sampler, 0, "The first of the test tasks, not chosen by its result.")]
    if chosen:
        reason = f"Chosen for contrast: the first task in which {best.name} is ahead of {rows[0].name} by most."
        tasks.append(show_task(films, rows, sampler, chosen, reason))
    ways, shots = found.recipe.episode.n_way, found.recipe.episode.k_shot
    return render(
        "demo.html.j2",
        title="Recognize new actions from one example",
        summary=f"Each method has to recognize {ways} motions that it has never been trained on, from {shots} film of "
        f"each. {best.name} gives {best.evaluations['accuracy'].accuracy.mean:.0f} % right answers, the frozen image "
        f"model alone {rows[0].evaluations['accuracy'].accuracy.mean:.0f} %, chance {100 / ways:.0f} %.",
        ways=ways,
        shots="one film" if shots == 1 else f"{shots} films",
        tasks=tasks,
        reversals=films.reversals(),
        **results_of(rows),
        notes=f"{options.episodes:,} tasks with {len(found.catalog.class_names)} classes that no method has seen in "
        f"training (data seed {options.seed}), the same for all. The backbone is tiny-clip, the head the same in every "
        "row. Differences are to the first row, paired task by task. Intervals hold for one model and these classes.",
        confusion=confusion_section(found.methods[number], found.catalog.class_names),
    )


def main(argv: list[str] | None = None) -> int | None:
    """Run the demo with command line options."""
    run(parse_options(Demo, argv, "demo", __doc__))
    return 0


if __name__ == "__main__":
    run_recipe(main)
