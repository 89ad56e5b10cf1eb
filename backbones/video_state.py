"""States of videos before any task: named tensors whose first dimension is the video."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class VideoState(dict[str, Tensor]):
    """Tensors by name, whose entry ``i`` along the first dimension depends on video ``i`` alone.

    A state does not depend on a task. It can be computed once and used in any number of episodes.
    """

    @property
    def num_videos(self) -> int:
        """Number of videos."""
        return next(iter(self.values())).shape[0]

    def select(self, videos: Tensor | slice) -> VideoState:
        """Return the states of some videos, given by index tensor, mask or slice."""
        return VideoState({name: tensor[videos] for name, tensor in self.items()})

    def to(self, *args, **kwargs) -> VideoState:  # type: ignore[no-untyped-def]
        """Convert or move all tensors, as ``Tensor.to``."""
        return VideoState({name: tensor.to(*args, **kwargs) for name, tensor in self.items()})

    def split(self, sizes: Sequence[int]) -> list[VideoState]:
        """Split into consecutive groups of videos, e.g. the support and the query of one task."""
        parts = {name: tensor.split(list(sizes)) for name, tensor in self.items()}
        return [VideoState({name: part[i] for name, part in parts.items()}) for i in range(len(sizes))]

    @staticmethod
    def cat(states: Sequence[VideoState]) -> VideoState:
        """Concatenate the videos of several states, which must have the same names."""
        return VideoState({name: torch.cat([state[name] for state in states]) for name in states[0]})
