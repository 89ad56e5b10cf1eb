"""Clips of moving shapes: their trajectories and their frames. The classes differ in motion only."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from einops import rearrange
from torch import Generator, Tensor

from ..generated import ClipSettings
from .drawing import LOOKS, Poses, draw, random_appearance
from .motions import Motion, Offsets, all_motions, random_jitter, split_motions

MEDIAN_SIZE = 0.28
# Standard deviations of position and log size in a single frame, equal for all classes. They are the largest that keep
# shapes mostly in the picture, and exceed the spread of the longest paths.
PLACE_SPREAD, LOG_SIZE_SPREAD = 0.38, 0.3
LARGEST_DEVIATION = 1.75
LookName = Literal["any", "dark", "bright"]


@dataclass(frozen=True)
class MovingShapes(ClipSettings):
    """Settings that determine all clips of the dataset.

    With another ``look``, a clip shows the same trajectory. The looks ``dark`` and ``bright`` share no shape, texture
    or color, for tests on another domain.
    """

    look: LookName = "any"

    DATA_SET = "moving shapes"
    VERSION = 1
    MEGABYTES = 70

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.look not in LOOKS:
            raise self.bad_value("look", self.look, f"one of {', '.join(get_args(LookName))}")

    def description(self) -> dict[str, object]:
        """Return what identifies the dataset. That of the look ``any`` is the one of earlier versions."""
        description = {name: value for name, value in super().description().items() if name != "look"}
        return description if self.look == "any" else {**description, "data_set": f"{self.DATA_SET}, {self.look}"}

    def classes(self) -> tuple[Motion, ...]:
        """Return all classes in a fixed order."""
        return all_motions()

    def split(self) -> dict[str, tuple[int, ...]]:
        """Return the class indices of ``train`` (base), ``val`` and ``test`` (novel)."""
        return split_motions(self.seed)

    def poses(self, motion: int, clip: int) -> Poses:
        """Return the true trajectory of a clip, each quantity ``(1, T)``. ``motion`` is an index into `all_motions`."""
        return self._poses(all_motions()[motion], self._generator(motion, clip))

    def clip(self, motion: int, clip: int) -> Tensor:
        """Return the frames of a clip, uint8 ``(T, 3, pixels, pixels)``."""
        generator = self._generator(motion, clip)
        poses = self._poses(all_motions()[motion], generator)
        appearance = random_appearance(1, generator, LOOKS[self.look])
        return draw(poses, appearance, self.pixels, generator)[0]

    def _poses(self, motion: Motion, generator: Generator) -> Poses:
        times = torch.linspace(-1, 1, self.frames, dtype=torch.float64)
        return place_at_random(motion.offsets(times, random_jitter(1, generator)), generator)

    def _generator(self, motion: int, clip: int) -> Generator:
        """Return the generator of one clip, so that clips are independent of the order and process of generation."""
        digest = hashlib.blake2b(f"moving shapes {self.seed} {motion} {clip}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def place_at_random(offsets: Offsets, generator: Generator) -> Poses:
    """Return trajectories with random starts, so that one random frame carries no information about the class (ours).

    Position and log size over a clip's frames have the covariance of its offsets. The center is drawn with the
    difference to a covariance that all classes share. A single frame therefore has the same mean and covariance of
    position and log size in every class, and a uniformly distributed angle.

    Args:
        offsets: of ``n`` clips, ``(n, T)`` each.
        generator: for centers and angles.
    """
    centered = torch.stack((offsets.x, offsets.y, offsets.log_size), dim=-1)
    centered = centered - centered.mean(dim=1, keepdim=True)
    shared = torch.tensor([PLACE_SPREAD, PLACE_SPREAD, LOG_SIZE_SPREAD], dtype=centered.dtype).square().diag()
    missing = shared - rearrange(centered, "n t q -> n q t") @ centered / centered.shape[1]
    deviations = _truncated_normal((len(centered), 3, 1), generator)
    centers = torch.linalg.cholesky(missing) @ deviations
    x, y, log_size = (centered + rearrange(centers, "n q 1 -> n 1 q")).unbind(dim=-1)
    start = 2 * math.pi * torch.rand(len(centered), 1, generator=generator, dtype=centered.dtype)
    quantities = x, y, MEDIAN_SIZE * log_size.exp(), start + offsets.angle
    return Poses(*(quantity.float() for quantity in quantities))


def _truncated_normal(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Return a normal sample, truncated so that shapes stay in the picture, with mean 0 and variance 1."""
    limit = LARGEST_DEVIATION
    inside = math.erf(limit / math.sqrt(2))
    variance = 1 - 2 * limit * math.exp(-(limit**2) / 2) / math.sqrt(2 * math.pi) / inside
    uniform = 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1
    return torch.erfinv(uniform * inside) * math.sqrt(2 / variance)
