"""A clip of moving shapes: where its shape is in every frame, and the frames. Only motion tells the classes apart."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ...backbones.tiny_clip.drawing import Poses, draw, random_appearance
from ...errors import DmgalError
from .motions import Motion, Offsets, all_motions, random_jitter

MEDIAN_SIZE = 0.28
# Standard deviations of place and log size in a single frame, the same for every class: the largest that leave shapes
# mostly in the picture, and larger than what the longest paths spread over by themselves.
PLACE_SPREAD, LOG_SIZE_SPREAD = 0.38, 0.3
LARGEST_DEVIATION = 1.75


@dataclass(frozen=True)
class MovingShapes:
    """What decides every clip of the data set.

    Args:
        seed: draws the split and all clips; 0 or more.
        clips_per_class: at least 1.
        frames: of a clip, 8 to 64; with fewer the fast motions would alias.
        pixels: height and width, even, 16 to 512.

    Raises:
        DmgalError: a value outside its range.
    """

    seed: int = 0
    clips_per_class: int = 30
    frames: int = 16
    pixels: int = 64

    def __post_init__(self) -> None:
        _check("seed", self.seed, 0, 2**63 - 1)
        _check("clips_per_class", self.clips_per_class, 1, 10**5)
        _check("frames", self.frames, 8, 64)
        _check("pixels", self.pixels, 16, 512)
        if self.pixels % 2:
            _refuse("pixels", self.pixels, "an even number: H.264 halves the resolution of color")

    def poses(self, motion: int, clip: int) -> Poses:
        """The true trajectory of a clip, each quantity ``(1, T)``. ``motion`` is an index into `all_motions`."""
        return self._poses(all_motions()[motion], self._generator(motion, clip))

    def clip(self, motion: int, clip: int) -> Tensor:
        """The frames of a clip, uint8 ``(T, 3, pixels, pixels)``."""
        generator = self._generator(motion, clip)
        poses = self._poses(all_motions()[motion], generator)
        return draw(poses, random_appearance(1, generator), self.pixels, generator)[0]

    def _poses(self, motion: Motion, generator: Generator) -> Poses:
        times = torch.linspace(-1, 1, self.frames, dtype=torch.float64)
        return place_at_random(motion.offsets(times, random_jitter(1, generator)), generator)

    def _generator(self, motion: int, clip: int) -> Generator:
        """One of its own for every clip: no clip depends on which others were made, by whom, and in what order."""
        digest = hashlib.blake2b(f"moving shapes {self.seed} {motion} {clip}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def place_at_random(offsets: Offsets, generator: Generator) -> Poses:
    """Trajectories that start somewhere, so that one random frame tells nothing about the class. Ours.

    Place and log size over a clip's frames have the covariance of its offsets. Their center is drawn with what is
    missing to the covariance that all classes share; so a single frame has the same mean and covariance of place and
    log size in every class, and an even angle.

    Args:
        offsets: of ``n`` clips, ``(n, T)`` each.
        generator: draws centers and angles.
    """
    moved = torch.stack((offsets.x, offsets.y, offsets.log_size), dim=-1)  # (n, T, 3)
    moved = moved - moved.mean(dim=1, keepdim=True)
    shared = torch.tensor([PLACE_SPREAD, PLACE_SPREAD, LOG_SIZE_SPREAD], dtype=moved.dtype).square().diag()
    missing = shared - moved.transpose(1, 2) @ moved / moved.shape[1]  # (n, 3, 3)
    deviations = _truncated_normal((len(moved), 3, 1), generator)
    centers = torch.linalg.cholesky(missing) @ deviations  # (n, 3, 1)
    x, y, log_size = (moved + centers.transpose(1, 2)).unbind(dim=-1)
    start = 2 * math.pi * torch.rand(len(moved), 1, generator=generator, dtype=moved.dtype)
    quantities = x, y, MEDIAN_SIZE * log_size.exp(), start + offsets.angle
    return Poses(*(quantity.float() for quantity in quantities))


def _truncated_normal(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Mean 0 and variance 1 after truncation: no start is so far out that its shape leaves the picture."""
    limit = LARGEST_DEVIATION
    inside = math.erf(limit / math.sqrt(2))
    variance = 1 - 2 * limit * math.exp(-(limit**2) / 2) / math.sqrt(2 * math.pi) / inside
    even = 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1
    return torch.erfinv(even * inside) * math.sqrt(2 / variance)


def _check(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        _refuse(name, value, f"a whole number from {low} to {high}")


def _refuse(name: str, value: object, expected: str) -> None:
    raise DmgalError(
        "moving shapes cannot be made like this",
        received=f"{name}={value!r}",
        expected=f"{name}: {expected}",
        remedy=f"change {name}",
    )
