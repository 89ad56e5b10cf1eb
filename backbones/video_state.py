"""What is known of some videos before any task: named tensors whose first dimension counts the videos."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class VideoState(dict[str, Tensor]):
    """Tensors by name; entry ``i`` along every first dimension belongs to video ``i`` alone.

    Because nothing of a task is in it, a state may be computed once and used in any number of episodes.
    """

    @property
    def num_videos(self) -> int:
        return next(iter(self.values())).shape[0]

    def select(self, videos: Tensor | slice) -> VideoState:
        """The states of some videos, by index tensor, mask or slice."""
        return VideoState({name: tensor[videos] for name, tensor in self.items()})

    def to(self, *args, **kwargs) -> VideoState:  # type: ignore[no-untyped-def]
        return VideoState({name: tensor.to(*args, **kwargs) for name, tensor in self.items()})

    def split(self, sizes: Sequence[int]) -> list[VideoState]:
        """Consecutive groups of videos, e.g. the support and the query of one task."""
        parts = {name: tensor.split(list(sizes)) for name, tensor in self.items()}
        return [VideoState({name: part[i] for name, part in parts.items()}) for i in range(len(sizes))]

    @staticmethod
    def cat(states: Sequence[VideoState]) -> VideoState:
        """Videos of several states, one after the other; all must have the same names."""
        return VideoState({name: torch.cat([state[name] for state in states]) for name in states[0]})
