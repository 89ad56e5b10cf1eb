"""Demo of the toolkit: generate videos, train and compare four methods, write a table and a web page.

    dmgal demo
    dmgal demo --out my_demo --seed 7

The videos are moving shapes, in which only motion distinguishes the classes. The backbone is tiny-clip, which was
trained on still images only. All methods share the head and the training episodes, and are tested on the same tasks
with unseen classes. Each method is trained by ``dmgal train`` in its own process. A stopped demo resumes where it was.
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
from dmgal.recipes.reports.page import as_page
from dmgal.recipes.reports.runs import Row, as_text, compare, rows_as_json
from dmgal.recipes.run.cli_errors import parse_options, run_recipe
from dmgal.recipes.run.config import DataConfig
from dmgal.recipes.run.data import build_catalog
from dmgal.recipes.run.evaluation import Protocol
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
    protocol = Protocol(episodes=options.episodes)
    rows = compare([options.out / "runs" / method for method in METHODS], protocol, progress=not options.quiet)
    seconds = {
        "videos": round(generated - started, 1),
        "training_and_evaluation": round(time.monotonic() - generated, 1),
    }
    _write(rows, options, seconds)
    return rows


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


def _write(rows: list[Row], options: Demo, seconds: dict[str, float]) -> None:
    table = as_text(rows)
    print(f"\n5-way 1-shot, novel classes of moving shapes, data seed {options.seed}; ± is a 95 % interval")
    print(f"\n{table}")
    result = {"options": {**vars(options), "out": None}, "seconds": seconds, "rows": rows_as_json(rows)}
    write_text(options.out / "results.json", json_text({**result, "environment": environment()}))
    page = as_page(
        rows,
        title="Few-shot action recognition on moving shapes",
        summary=f"5-way 1-shot accuracy on 24 classes that no method has seen in training (data seed {options.seed}, "
        f"{options.episodes} episodes, the same for all). The backbone is tiny-clip, the head the same in every row.",
        notes="Differences are to the first row, paired episode by episode. Reversal tasks contrast a motion with its "
        "time reversal (chance 50 %). 4-way ones contain two such pairs. Intervals hold for one model and these "
        "classes.",
    )
    write_text(options.out / "index.html", page)
    print(f"\nvideos {seconds['videos']:.0f} s, training and evaluation {seconds['training_and_evaluation']:.0f} s")
    print(f"numbers: {options.out / 'results.json'}\npage:    {options.out / 'index.html'}")


def main(argv: list[str] | None = None) -> int | None:
    """Run the demo with command line options."""
    run(parse_options(Demo, argv, "demo", __doc__))
    return 0


if __name__ == "__main__":
    run_recipe(main)
