"""Augmented views of a clip with other frames, another crop and other colors.

They replace a second clip in classes that only have one. Views are never mirrored, because labels may depend on left
and right.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..catalog import VideoCatalog
from ..dataset import ClipReader
from ..frames import random_frames
from ..sampler import hashed_seed
from ..transforms import TrainTransform
from ..video import DecoderName

CROP_SCALE = (0.7, 1.0)
COLOR_JITTER = 0.2


class AugmentedViews(Dataset[Tensor]):
    """``count`` reproducible views of each clip, one clip after the other, uint8 ``(T, 3, size, size)``.

    Args:
        catalog: the clips.
        num_frames: ``T``.
        size: height and width, pixels.
        count: views of each clip.
        seeds: one number per clip that determines its views, such as the hash of its content.
        decoder: library that decodes video files.

    Raises:
        VideoError: a clip cannot be read (on access).
    """

    def __init__(
        self,
        catalog: VideoCatalog,
        num_frames: int,
        size: int,
        count: int,
        seeds: Sequence[int],
        decoder: DecoderName = "pyav",
    ) -> None:
        self.count = count
        self.seeds = seeds
        self._num_frames = num_frames
        self._reader = ClipReader(catalog, num_frames, decoder=decoder)
        self._transform = TrainTransform(size, scale=CROP_SCALE, color_jitter=COLOR_JITTER)

    def __len__(self) -> int:
        return self.count * len(self.seeds)

    def __getitem__(self, view: int) -> Tensor:
        if not 0 <= view < len(self):
            raise IndexError(f"View {view} is out of range for {len(self)} views.")
        clip, number = divmod(view, self.count)
        seed, generator = hashed_seed(self.seeds[clip], number, "view"), torch.Generator()

        def choose(num_frames: int) -> list[int]:
            return random_frames(num_frames, self._num_frames, generator.manual_seed(seed))

        frames = self._reader.read(clip, choose)
        return self._transform(frames, generator.manual_seed(hashed_seed(seed, "transform")))
