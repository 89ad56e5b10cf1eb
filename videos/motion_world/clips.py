"""Clips of motion world: a motion, a cast and a view. Only the motion depends on the class."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..generated import ClipSettings
from .motions import all_motions, split_motions
from .stage.cameras import View, film
from .stage.curves import Array, Tempo
from .stage.layers import Layer
from .stage.registry import Motion
from .stage.scenes import Cast, stage


@dataclass(frozen=True)
class MotionWorld(ClipSettings):
    """Settings that determine all clips of the dataset."""

    pixels: int = 112

    DATA_SET = "motion world"
    VERSION = 1
    MEGABYTES = 350

    def classes(self) -> tuple[Motion, ...]:
        """Return all classes in a fixed order."""
        return all_motions()

    def split(self) -> dict[str, tuple[int, ...]]:
        """Return the class indices of ``train`` (base), ``val`` and ``test`` (novel)."""
        return split_motions(self.seed)

    def clip(self, motion: int, clip: int) -> Tensor:
        """Return the frames of a clip, uint8 ``(T, 3, pixels, pixels)``. ``motion`` is an index into `all_motions`."""
        drawn = all_motions()[motion]
        rng = self.generator(drawn.name, clip)
        cast, view, tempo = self.parameters(rng)
        times = view.times(self.frames)
        layers = scene_layers(drawn, cast, view.seen(times).ravel(), tempo)
        pictures = film(layers, view, times, self.pixels, rng)
        return rearrange(torch.from_numpy(pictures), "t h w c -> t c h w")

    def parameters(self, rng: np.random.Generator) -> tuple[Cast, View, Tempo]:
        """Draw all that varies between the clips of a class."""
        return draw_parameters(rng)

    def generator(self, name: str, clip: int) -> np.random.Generator:
        """Return the generator of one clip, so that clips are independent of the order and process of generation."""
        digest = hashlib.blake2b(f"{self.DATA_SET} {self.seed} {name} {clip}".encode(), digest_size=16).digest()
        return np.random.default_rng(int.from_bytes(digest, "big"))


def draw_parameters(rng: np.random.Generator) -> tuple[Cast, View, Tempo]:
    """Draw all that varies between the clips of a class, from distributions that are the same for all classes."""
    return Cast.draw(rng), View.draw(rng), Tempo.draw(rng)


def scene_layers(motion: Motion, cast: Cast, times: Array, tempo: Tempo) -> list[Layer]:
    """Return the layers of a motion at times ``(T,)`` from 0 to 1. A reversal runs from the end to the start."""
    layers = motion.scene.layers(cast, 1 - times if motion.backward else times, tempo)
    return stage(layers, cast, len(times), motion.chiral)
