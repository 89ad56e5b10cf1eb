"""Dropout whose mask all videos of a batch share, so that it does not matter which process holds which video."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SharedDropout(nn.Dropout):
    """Drops the same entries of every video, other ones at every call.

    With the random state seeded alike, a batch gives the same result whole, in parts, and spread over processes. (The
    released code drops entries of each video for itself.)

    Args:
        p: how likely an entry is dropped.
        video_dim: the dimension that counts videos; of ``(..., V, T, P, C)`` if not given.
    """

    def __init__(self, p: float = 0.5, video_dim: int = -4) -> None:
        super().__init__(p)
        self.video_dim = video_dim

    def forward(self, values: Tensor) -> Tensor:
        """Values to the same shape; the mask is their shape with one video."""
        if not self.training or self.p == 0:
            return values
        shape = list(values.shape)
        shape[self.video_dim] = 1
        # drawn on the CPU, so that every device drops the same
        return values * F.dropout(torch.ones(shape), self.p).to(values)
