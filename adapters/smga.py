"""The Smga-Adapter: self motion-guided attention within each frame of one video, in a bottleneck.

Our reconstruction (see ``motion``). With ``h = GELU(down(x) + temporal)``, motion ``f, g`` and ``values = dw(h)``:

    y = h + signed(f, g) + (softmax(f f^T / sqrt(d)) + softmax(g g^T / sqrt(d))) / 2 @ values
    out = x + up(y)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .motion import BottleneckShape, MotionBottleneck, Placement, motion_attention
from .recomputation import recomputed, residual_bottleneck

_RECONSTRUCTIBLE_DTYPES = (torch.float32, torch.float64)
"""Dtypes precise enough to reconstruct the input from the output in the backward pass."""


class SmgaAdapter(MotionBottleneck):
    """Smga-Adapter of one block, which handles each video alone."""

    def __init__(self, shape: BottleneckShape, placement: Placement = "after") -> None:
        super().__init__(shape, reads_values=shape.attention)
        self.placement = placement

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``(V, T, N, C)`` to the same shape."""
        self.check(tokens)
        parameters = [p for name, p in self.named_parameters() if not name.startswith(("down.", "up."))]
        # A LoRA on `down` or `up` may have dropout, so that a recomputation would differ.
        has_plain_linears = type(self.down) is type(self.up) is nn.Linear
        if tokens.dtype in _RECONSTRUCTIBLE_DTYPES and has_plain_linears:
            return residual_bottleneck(tokens, self.down, self._between, self.up, parameters)
        return self.back(recomputed(self._between, self.down(tokens), parameters), tokens)

    def _between(self, reduced: Tensor) -> Tensor:
        """Map the output of ``down`` to the input of ``up``, ``(V, T, N, a)``."""
        hidden = self.activated(reduced)
        result = hidden
        if self.shape.reads_motion:
            motion = self.motion(hidden)
            result = result + self.signed_values(motion)
            if self.shape.attention:
                result = result + motion_attention(motion, motion, self.values(hidden))
        return result
