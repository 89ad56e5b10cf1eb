"""Store of decoded frames: videos are decoded once, before training and evaluation.

    dmgal store method/dmgal_adapter prepared/data.yaml --out STORE
    dmgal store data/ssv2_small --data.root /path/to/ssv2_small --out STORE --size 224
    dmgal train method/dmgal_adapter prepared/data.yaml --data.store STORE

Validation and test videos are stored as their fixed uint8 clips, byte-identical to decoding. Training videos are stored
as JPEGs of all frames, with a short side of at most 256 pixels. They differ slightly from the decoded frames, so
training from a store differs slightly from training from videos. After an interruption, a kill or a full disk, the same
command resumes. A store that does not fit a run, or whose videos have changed, is refused with the differences.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from dmgal.backbones import FrameEncoder, load_backbone
from dmgal.errors import DmgalError
from dmgal.recipes.run.cli_errors import as_description, resumable, run_recipe
from dmgal.recipes.run.config import Recipe, parse
from dmgal.recipes.run.data import build_catalog, test_transform
from dmgal.recipes.run.ranges import WORKERS, Range
from dmgal.videos.decoding.clip import Size
from dmgal.videos.store.build import build_store
from dmgal.videos.store.content import EvaluationClips, TrainingFrames


@dataclass(frozen=True)
class Store:
    """Options of the command, beside the recipe."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    out: Path | None = None
    """Folder of the store, created if absent. None: the recipe's data.store."""
    size: Annotated[int | None, Range(1, 4096)] = None
    """Height and width of the backbone's images. None: load the recipe's backbone to find out."""
    short_side: Annotated[int, Range(1, 4096)] = 256
    """Maximum short side of training frames, in pixels."""
    quality: Annotated[int, Range(1, 95)] = 90
    """JPEG quality of training frames, from 1 to 95."""
    workers: Annotated[int | None, Range(1, WORKERS)] = None
    """Number of decoding processes. None: one per core."""
    check: bool = False
    """Read all stored data, and rebuild what is damaged."""
    quiet: bool = False
    """Hide progress bars."""


def main(argv: list[str] | None = None) -> int | None:
    """Build the store named on the command line."""
    options, _ = parse(argv, prog="dmgal store", description=as_description(__doc__), wrapper=Store)
    recipe: Recipe = options.recipe
    folder = options.out or recipe.data.store
    if folder is None:
        raise DmgalError(
            "A store needs a folder.",
            received="neither --out nor data.store",
            expected="a folder that does not exist yet, or that holds the store",
            remedy="To build it, pass --out FOLDER, then --data.store FOLDER to dmgal train and dmgal evaluate.",
        )
    decoder, progress = recipe.data.decoder, not options.quiet
    size: Size | None = options.size
    with resumable():
        catalog = build_catalog(recipe.data, progress)
        if size is None:
            encoder = FrameEncoder(load_backbone(recipe.backbone.name), recipe.backbone.pooling)
            size = encoder.image_size
        clips = EvaluationClips(recipe.data.num_frames, test_transform(recipe, size), decoder)
        frames = TrainingFrames(options.short_side, options.quality, decoder)
        reports = build_store(catalog, folder, clips, frames, options.workers, options.check, progress)
    for report in reports:
        print(report)
    print(f"read it with: {shlex.join(['--data.store', str(folder)])}")
    return 0


if __name__ == "__main__":
    run_recipe(main)
