"""Motion world on disk: about 350 motions of bodies, hands and things as small H.264 files."""

from __future__ import annotations

from pathlib import Path

from ..generated import generate
from .clips import MotionWorld


def generate_motion_world(
    root: Path,
    seed: int = 0,
    clips_per_class: int = 30,
    frames: int = 16,
    pixels: int = 112,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Generate the dataset, or the missing part of it, and return the path of its split file.

    Args:
        root: folder of the dataset, created if absent.
        seed: determines the split and all clips.
        clips_per_class: number of clips in each class.
        frames: number of frames per clip, at 10 frames per second.
        pixels: height and width.
        workers: number of drawing processes; None uses one per core, 1 draws in this process.
        progress: show a progress bar and messages.

    Raises:
        DmgalError: a value is out of range, the root has other files or a dataset with other settings, or it cannot
            be written.
    """
    return generate(MotionWorld(seed, clips_per_class, frames, pixels), root, workers, progress)
