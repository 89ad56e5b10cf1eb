"""Dropout whose mask all videos of a batch share, so that it does not matter which process holds which video."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SharedDropout(nn.Dropout):
    """Drops the same entries of every video, other ones at every call.

    With the random state seeded alike, a batch gives the same result whole, in parts, and spread over processes. (The
    released code drops entries of each video for itself.)
    """

    def forward(self, values: Tensor) -> Tensor:
        """Values ``(..., V, T, P, C)`` to the same shape; the mask is ``(..., 1, T, P, C)``."""
        if not self.training or self.p == 0:
            return values
        # drawn on the CPU, so that every device drops the same
        mask = F.dropout(torch.ones(*values.shape[:-4], 1, *values.shape[-3:]), self.p)
        return values * mask.to(values)
