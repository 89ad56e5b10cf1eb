"""Decodes the videos of a data set once, so that training and evaluation need not: a store of frames.

    dmgal store method/dmgal_adapter prepared/data.yaml --out STORE
    dmgal store data/ssv2_small --data.root /path/to/ssv2_small --out STORE --size 224
    dmgal train method/dmgal_adapter prepared/data.yaml --data.store STORE

Validation and test videos are kept as their fixed clips, uint8, byte for byte what decoding gives. Training videos are
kept as JPEGs, all frames, the short side at most 256 pixels: close to the video's own, not equal, so a run that trains
from a store differs a little from one that decodes. Interrupted, by Ctrl-C, a kill or a full disk, it goes on from
there when it is called again. A store that does not fit a run, or whose videos have changed, is refused, and what
differs is named.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from dmgal.backbones import load_backbone, make_encoder
from dmgal.episodes import VideoCatalog
from dmgal.episodes.store import EvaluationClips, PartReport, TrainingFrames, build_store
from dmgal.errors import DmgalError
from dmgal.recipes.build import build_catalog, test_transform
from dmgal.recipes.config import Recipe, parse
from dmgal.recipes.entry import as_description, resumable, run_recipe


@dataclass(frozen=True)
class Store:
    """Options of the command, beside the recipe."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    out: Path | None = None
    """Folder of the store, made where absent; None: the recipe's data.store."""
    size: int | None = None
    """Height and width of the backbone's images; None: ask the recipe's backbone, which is loaded for it."""
    short_side: int = 256
    """Of training frames, at most, pixels."""
    quality: int = 90
    """Of training frames as JPEGs, from 1 to 95."""
    workers: int | None = None
    """Processes that decode; None: one per core."""
    check: bool = False
    """Read everything that is stored, and make anew what is damaged."""
    quiet: bool = False
    """No progress bars."""


def build_from_recipe(
    recipe: Recipe,
    catalog: VideoCatalog,
    folder: Path,
    size: int | None = None,
    frames: TrainingFrames | None = None,
    workers: int | None = None,
    check: bool = False,
    progress: bool = True,
) -> tuple[PartReport, ...]:
    """The store that runs of a recipe read; ``size`` None asks the recipe's backbone for that of its images."""
    if size is None:
        encoder = make_encoder(load_backbone(recipe.backbone.name), recipe.backbone.pooling)
        size = encoder.image_size[0]
    clips = EvaluationClips(recipe.data.num_frames, test_transform(recipe, (size, size)), recipe.data.decoder)
    frames = frames or TrainingFrames(decoder=recipe.data.decoder)
    return build_store(catalog, folder, clips, frames, workers=workers, check=check, progress=progress)


def main(argv: list[str] | None = None) -> int | None:
    """Build the store of a command line."""
    options, _ = parse(argv, prog="dmgal store", description=as_description(__doc__), wrapper=Store)
    recipe: Recipe = options.recipe
    folder = options.out or recipe.data.store
    if folder is None:
        raise DmgalError(
            "A store needs a folder.",
            received="neither --out nor data.store",
            expected="a folder that does not exist yet, or that holds the store",
            remedy="pass --out FOLDER, then --data.store FOLDER to dmgal train and dmgal evaluate",
        )
    with resumable():
        catalog = build_catalog(recipe.data, progress=not options.quiet)
        reports = build_from_recipe(
            recipe,
            catalog,
            folder,
            options.size,
            TrainingFrames(options.short_side, options.quality, recipe.data.decoder),
            options.workers,
            options.check,
            progress=not options.quiet,
        )
    for report in reports:
        print(report)
    print(f"read it with: {shlex.join(['--data.store', str(folder)])}")
    return 0


if __name__ == "__main__":
    run_recipe(main)
