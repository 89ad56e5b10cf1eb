"""Continuing from the bundled motion adapter on a few real classes: is the result ever worse than the start?

    python -m dmgal.bench.few_classes VIDEOS/ssv2_mini/train VIDEOS/ssv2_mini/val --world data/motion_world

Writes ``bench/results/few_classes.json``. Each draw divides the classes at random into base, validation and novel
classes, and trains four adapters with the same number of steps: one from scratch, one that continues from the start,
one that stays near it by ``--train.pull-to-start`` and a lower learning rate, and the same with a task of motion world
after each real one. Those that continue keep the start unless validation is significantly better. All are compared
with the start on the novel classes, on the same episodes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from dmgal.bench.measuring import write_report
from dmgal.bench.motion_transfer import as_json, catalog_of, evaluated
from dmgal.episodes.evaluation import Evaluation, paired_difference
from dmgal.recipes.run.config import parse
from dmgal.recipes.run.evaluation import load_run
from dmgal.recipes.run.folder import Run, environment
from dmgal.recipes.train import Train, run
from dmgal.videos import VideoCatalog

START = ("--adapter.start", "tiny-clip-motion")
NEAR = (*START, "--train.learning-rate", "0.001", "--train.pull-to-start", "10")
BESIDE = "continued beside motion world"
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "start": (*START, "--train.steps", "0"),
    "from scratch": (),
    "continued": START,
    "continued near the start": NEAR,
    BESIDE: NEAR,
}


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    root: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of class folders of videos."""
    world: Path
    """Folder of motion world, drawn if it is not there yet."""
    draws: int = 5
    """Random divisions of the classes."""
    base: int = 3
    """Base classes of a draw."""
    val: int = 3
    """Validation classes of a draw. All others are novel."""
    steps: int = 100
    """Training steps."""
    episodes: int = 10_000
    """Number of episodes."""
    out: Path = Path(__file__).parent / "results" / "few_classes.json"


def divided(catalog: VideoCatalog, options: Options, draw: int) -> VideoCatalog:
    """Return the catalog with base, validation and novel classes."""
    order = np.random.default_rng(draw).permutation(len(catalog.class_names)).tolist()
    place = {label: position for position, label in enumerate(order)}
    splits = tuple(
        "train" if place[label] < options.base else "val" if place[label] < options.base + options.val else "test"
        for label in range(len(order))
    )
    return VideoCatalog(catalog.root, catalog.videos, catalog.labels, catalog.class_names, splits)


def trained(name: str, split_file: Path, root: Path, options: Options, draw: int, out: Path) -> Run:
    """Train a variant on the base classes of a draw."""
    ways = str(min(options.base, options.val))
    words = ["method/smga", "--data.root", str(root), "--data.split-file", str(split_file), "--ways", ways]
    words += ["--data.num-workers", "0", "--data.keep-in-memory", "--train.seed", str(draw)]
    words += ["--train.steps", str(options.steps), "--train.validate-every", str(max(1, options.steps // 4))]
    words += ["--data.motion-world", str(options.world)] if name == BESIDE else []
    recipe = parse([*words, *VARIANTS[name]], prog="few_classes", description="", wrapper=Train)[0].recipe
    return run(recipe, out, quiet=True)


def evaluations_of(folder: Run, catalog: VideoCatalog, options: Options) -> dict[int, Evaluation]:
    """Return the evaluations of a run on the novel classes, by shots."""
    novel = catalog.split("test")
    return evaluated(*load_run(folder), novel, options.episodes, min(5, len(novel.class_names)), progress=False)


def measure(options: Options) -> list[dict[str, object]]:
    """Return the accuracies of all variants and their paired differences to the start, by draw."""
    catalog, results = catalog_of(options.root), []
    for draw in range(options.draws):
        with tempfile.TemporaryDirectory() as folder:
            drawn = divided(catalog, options, draw)
            split_file = Path(folder, "split.csv")
            drawn.to_csv(split_file)
            found = {
                name: evaluations_of(
                    trained(name, split_file, catalog.root, options, draw, Path(folder, str(place))), drawn, options
                )
                for place, name in enumerate(VARIANTS)
            }
        result: dict[str, object] = {
            "base": [*drawn.split("train").class_names],
            "novel": [*drawn.split("test").class_names],
        }
        for shots in (1, 5):
            start = found["start"][shots]
            result[f"{shots}-shot"] = {
                name: {
                    "accuracy": as_json(of[shots].accuracy),
                    "minus start": as_json(paired_difference(of[shots], start)),
                }
                for name, of in found.items()
            }
        results.append(result)
        print(result, flush=True)
    return results


def main(argv: list[str] | None = None) -> None:
    """Measure all draws and write the report."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    draws = measure(options)
    kept = {key: value for key, value in environment().items() if key != "command"}
    write_report({"environment": kept, "steps": options.steps, "draws": draws}, options.out, show=False)


if __name__ == "__main__":
    main()
