"""Dropout with one mask for all videos of a batch, so that results do not depend on which process has which video."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SharedDropout(nn.Dropout):
    """Dropout that drops the same entries of every video, and different ones in every call.

    With the same random state, a batch gives the same result at once, in parts, or distributed over processes. The
    released code draws a mask for each video.

    Args:
        p: probability that an entry is dropped.
        video_dim: dimension of the videos. The default fits ``(..., V, T, P, C)``.
    """

    def __init__(self, p: float = 0.5, video_dim: int = -4) -> None:
        super().__init__(p)
        self.video_dim = video_dim

    def forward(self, values: Tensor) -> Tensor:
        """Map values to the same shape, with a mask of the shape of one video."""
        if not self.training or self.p == 0:
            return values
        shape = list(values.shape)
        shape[self.video_dim] = 1
        # The CPU draws the mask, so that every device drops the same entries.
        return values * F.dropout(torch.ones(shape), self.p).to(values)
