"""Moving shapes on disk: 100 motions as small H.264 files, 64 base, 12 validation and 24 novel classes."""

from __future__ import annotations

from pathlib import Path

from ..generated import generate
from .clips import LookName, MovingShapes


def generate_moving_shapes(
    root: Path,
    seed: int = 0,
    clips_per_class: int = 30,
    frames: int = 16,
    pixels: int = 64,
    workers: int | None = None,
    progress: bool = True,
    look: LookName = "any",
) -> Path:
    """Generate the dataset, or the missing part of it, and return the path of its split file.

    Args:
        root: folder of the dataset, created if absent.
        seed: determines the split and all clips.
        clips_per_class: number of clips in each of the 100 classes.
        frames: number of frames per clip, at 10 frames per second.
        pixels: height and width.
        workers: number of drawing processes; None uses one per core, 1 draws in this process.
        progress: show a progress bar and messages.
        look: the shapes, textures, colors and grounds in the clips.

    Raises:
        DmgalError: a value is out of range, the root has other files or a dataset with other settings, or it cannot
            be written.
    """
    return generate(MovingShapes(seed, clips_per_class, frames, pixels, look), root, workers, progress)
