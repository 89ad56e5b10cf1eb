"""Generated data sets: write one to disk, or look at its classes.

    dmgal generate motion_world --out data/motion_world
    dmgal generate motion_world --sheet sheets            contact sheets, and a film of every class
    dmgal generate moving_shapes --clips-per-class 100 --frames 32 --pixels 128 --out data/large
    dmgal generate moving_shapes --look dark --out data/dark         and bright: the same motions in two domains

The videos depend only on the data set, the seed, the sizes and the look. Recipes with data.generate write the default
sizes by themselves. After an interruption, the same command resumes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from dmgal.errors import DmgalError
from dmgal.recipes.run.cli_errors import parse_options, resumable, run_recipe
from dmgal.recipes.run.config import GeneratedSet
from dmgal.recipes.run.data import generated_settings
from dmgal.recipes.run.ranges import SEEDS, WORKERS, Range
from dmgal.videos.contact_sheet import write_sheets
from dmgal.videos.generated import CLIPS, FRAMES, PIXELS, generate
from dmgal.videos.moving_shapes.clips import LookName, MovingShapes


@dataclass(frozen=True)
class Generate:
    """Options of the command."""

    data_set: Annotated[GeneratedSet, tyro.conf.Positional]
    """Name of the data set."""
    out: Path | None = None
    """Folder of the data set, created if absent. None: data/NAME."""
    sheet: Path | None = None
    """Write contact sheets and films of all classes into this folder, and no data set."""
    seed: Annotated[int, Range(0, SEEDS)] = 0
    """Seed of the split and of all clips."""
    clips_per_class: Annotated[int, Range(*CLIPS)] = 30
    """Number of clips in each class."""
    frames: Annotated[int, Range(*FRAMES)] = 16
    """Number of frames per clip, 8 to 64, at 10 per second."""
    pixels: Annotated[int | None, Range(*PIXELS)] = None
    """Height and width of the frames in pixels, even, 16 to 512. None: 64 for moving shapes, 112 for motion world."""
    look: LookName = "any"
    """Look of moving shapes. any: all shapes, textures and colors. dark and bright share none of them and show the same
    motions."""
    workers: Annotated[int | None, Range(1, WORKERS)] = None
    """Number of drawing processes. None: one per core."""
    quiet: bool = False
    """Hide progress bars."""


def main(argv: list[str] | None = None) -> int | None:
    """Write the data set named on the command line, or its contact sheets."""
    options = parse_options(Generate, argv, "generate", __doc__)
    kind = generated_settings(options.data_set)
    pixels = kind.pixels if options.pixels is None else options.pixels
    settings = kind(options.seed, options.clips_per_class, options.frames, pixels)
    if isinstance(settings, MovingShapes):
        settings = replace(settings, look=options.look)
    elif options.look != "any":
        raise DmgalError(
            "Only moving shapes have a look.",
            received=f"{options.data_set} with look {options.look}",
            expected="moving_shapes, or the look any",
            remedy="Remove --look.",
        )
    with resumable():
        if options.sheet is None:
            root = options.out or Path("data") / options.data_set
            split_file = generate(settings, root, options.workers, progress=not options.quiet)
            print(f"{len(settings.classes())} classes of {settings.clips_per_class} clips: {split_file}")
            return None
        try:
            files = write_sheets(settings, options.sheet, options.workers, progress=not options.quiet)
        except OSError as error:
            raise DmgalError(
                f"Cannot write contact sheets in {options.sheet}.",
                received=str(error),
                expected="a writable folder",
                remedy="Choose another folder.",
            ) from error
    print(f"{sum(file.suffix == '.png' for file in files)} sheets and {len(settings.classes())} films: {options.sheet}")
    return None


if __name__ == "__main__":
    run_recipe(main)
