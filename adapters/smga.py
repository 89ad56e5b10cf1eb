"""The Smga-Adapter: self motion-guided attention within each frame of one video, in a bottleneck behind a block.

Our reconstruction (see ``motion``). With ``h = GELU(down(x) + temporal)``, motion ``f, g`` and ``values = dw(h)``:

    y = h + signed(f, g) + (softmax(f f^T / sqrt(d)) + softmax(g g^T / sqrt(d))) / 2 @ values
    out = x + up(y)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .motion import BottleneckShape, MotionBottleneck, Placement, motion_attention
from .recomputation import recomputed, residual_bottleneck

FULL = (torch.float32, torch.float64)
"""Tokens of these types are found again well enough, not those of half precision; nor does a LoRA on ``down`` or
``up``, which may drop at random, do the same twice."""


class SmgaAdapter(MotionBottleneck):
    """Per video, so on the video's side of the task boundary."""

    def __init__(self, shape: BottleneckShape, placement: Placement = "after") -> None:
        super().__init__(shape, reads_values=shape.attention)
        self.placement = placement

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``(V, T, N, C)`` to the same shape."""
        self.check(tokens)
        within = [p for name, p in self.named_parameters() if not name.startswith(("down.", "up."))]
        if tokens.dtype in FULL and type(self.down) is type(self.up) is nn.Linear:
            return residual_bottleneck(tokens, self.down, self._between, self.up, within)
        return self.back(recomputed(self._between, self.down(tokens), within), tokens)

    def _between(self, reduced: Tensor) -> Tensor:
        """From what ``down`` gives to what ``up`` takes, ``(V, T, N, a)``."""
        hidden = self.activated(reduced)
        result = hidden
        if self.shape.reads_motion:
            motion = self.motion(hidden)  # (V, T, N, d)
            result = result + self.signed_values(motion)
            if self.shape.attention:
                result = result + motion_attention(motion, motion, self.values(hidden))
        return result
