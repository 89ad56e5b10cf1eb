"""TDSAM of M2ACL (ICASSP 2024): motion-guided attention whose values look along time instead of around the patch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .motion import Motion, motion_attention
from .motion_features import REFERENCE_NAMES, MotionFeatures
from .reference_state import load_reference_state


class TDSAM(nn.Module):
    """Within each frame, patches that move alike share their appearance over three frames.

    ``out = x + gamma * (A_f + A_b) / 2 @ values`` with ``A = softmax(m m^T / sqrt(C'))`` over the patches of a frame
    and ``values`` a depth-wise convolution of ``x`` over time, kernel 3; gamma starts at 0. DMGAL's S-MGA is a variant:
    its motion is narrower and has a position code, its values are convolved over space.

    As in S-MGA the attention of a clip and of its reversal is the same, in reverse order; but the weights over time
    tell them apart.

    Args:
        channels: width ``C`` of the patch maps.
        reduction: the motion has ``C' = C // reduction`` channels.
    """

    def __init__(self, channels: int, reduction: int = 2) -> None:
        super().__init__()
        self.motion = MotionFeatures(channels, reduction)
        self.values = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), groups=channels, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        """``(V,T,C,H,W)`` to the same shape; each video alone in evaluation mode or with frozen batch norms."""
        motion = Motion(*self.motion(features).flatten(4).transpose(3, 4))  # each (V,T,P,C')
        values = self.values(features.transpose(1, 2)).transpose(1, 2)  # (V,T,C,H,W)
        attended = motion_attention(motion, motion, values.flatten(3).transpose(2, 3))  # (V,T,P,C)
        return features + self.gamma * attended.transpose(2, 3).reshape(features.shape)

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load weights under the names of M2ACL's released code."""
        motion = {theirs: f"motion.{ours}" for theirs, ours in REFERENCE_NAMES.items()}
        load_reference_state(self, state, {**motion, "conv": "values", "gamma": "gamma"})
