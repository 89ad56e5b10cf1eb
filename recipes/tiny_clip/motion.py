"""Training of tiny-clip-motion, the motion adapter that ships with dmgal, on generated videos alone.

    python -m dmgal.recipes.tiny_clip.motion --out runs/tiny-clip-motion

Draws motion world and moving shapes, and trains a Smga in every block of the frozen tiny-clip on tasks of their base
classes. Another backbone: --backbone NAME. The adapter is in the run's folder ``adapter``.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

from dmgal.recipes.run.cli_errors import as_description, resumable, run_recipe
from dmgal.recipes.run.config import parse
from dmgal.recipes.train import Train, run
from dmgal.videos.generated import generate
from dmgal.videos.motion_world.clips import MotionWorld
from dmgal.videos.moving_shapes.clips import MovingShapes

MOVING_SHAPES_CLIPS = 14
"""Clips per class of moving shapes, so that motion world makes up nine tenths of the videos."""


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    out: Path = Path("runs/tiny-clip-motion")
    """Run folder."""
    data: Path = Path("data")
    """Folder for both data sets."""
    backbone: str = "tiny-clip"
    """Backbone to train the adapter for."""
    steps: int = 1500
    """Training steps, of one 5-way 1-shot task each."""
    resume: bool = False
    """Continue the run in the folder."""
    quiet: bool = False
    """Hide progress bars."""


def rows(data: Path, worlds: dict[str, Path]) -> Iterator[list[str]]:
    """Yield the rows of a split file of both data sets: base classes, and validation classes of motion world."""
    yield ["split", "class_name", "video", "reversal"]
    for name, split_file in worlds.items():
        seen: Counter[str] = Counter()
        with split_file.open(newline="") as file:
            for row in csv.DictReader(file):
                split, class_name, video = row["split"], row["class_name"], row["video"]
                seen[class_name] += 1
                is_extra = name == "moving_shapes"
                if split == "test" or (is_extra and (split != "train" or seen[class_name] > MOVING_SHAPES_CLIPS)):
                    continue
                place = (split_file.parent / video).relative_to(data).as_posix()
                yield [split, f"ms_{class_name}" if is_extra else class_name, place, ""]


def main(argv: list[str] | None = None) -> int | None:
    """Draw the data sets that are missing, and train."""
    options = tyro.cli(Options, args=argv, description=as_description(__doc__))
    with resumable():
        worlds = {
            name: generate(settings, options.data / name, progress=not options.quiet)
            for name, settings in {"motion_world": MotionWorld(), "moving_shapes": MovingShapes()}.items()
        }
        split_file = options.data / "motion.csv"
        with split_file.open("w", newline="") as file:
            csv.writer(file).writerows(rows(options.data, worlds))
        words = ["method/smga", "--data.name", "motion", "--data.root", str(options.data), "--data.no-may-flip"]
        words += ["--data.split-file", str(split_file), "--backbone.name", options.backbone]
        words += ["--train.steps", str(options.steps), "--train.validate-every", str(max(1, options.steps))]
        recipe = parse(words, prog="motion", description="", wrapper=Train)[0].recipe
        folder = run(recipe, options.out, resume=options.resume, quiet=options.quiet)
    print(f"adapter: {folder.adapter}\nnext: dmgal train method/motion --backbone.expert {folder.folder}")
    return None


if __name__ == "__main__":
    run_recipe(main)
