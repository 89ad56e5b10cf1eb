"""TDSAM of M2ACL (ICASSP 2024): motion-guided attention with values convolved over time instead of space."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn

from .motion import Motion, motion_attention
from .motion_features import REFERENCE_NAMES, MotionFeatures
from .reference_state import load_reference_state


class TDSAM(nn.Module):
    """Attention within each frame by which patches with similar motion share their appearance over three frames.

    ``out = x + gamma * (A_f + A_b) / 2 @ values`` with ``A = softmax(m m^T / sqrt(C'))`` over the patches of a frame
    and ``values`` a depth-wise convolution of ``x`` over time with kernel 3. Gamma starts at 0. DMGAL's S-MGA is a
    variant with narrower motion, a position code, and values convolved over space.

    As in S-MGA, a clip and its reversal have the same attention in reverse order. The convolution over time
    distinguishes them.

    Args:
        channels: width ``C`` of the patch maps.
        reduction: ``C' = C // reduction`` channels of motion.
    """

    def __init__(self, channels: int, reduction: int = 2) -> None:
        super().__init__()
        self.motion = MotionFeatures(channels, reduction)
        self.values = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), groups=channels, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(V,T,C,H,W)`` to the same shape. With batch norms in evaluation mode, each video is handled alone."""
        motion = Motion(*rearrange(self.motion(features), "d v t c h w -> d v t (h w) c"))
        values = self.values(rearrange(features, "v t c h w -> v c t h w"))
        attended = motion_attention(motion, motion, rearrange(values, "v c t h w -> v t (h w) c"))
        return features + self.gamma * rearrange(attended, "v t (h w) c -> v t c h w", h=features.shape[3])

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load weights under the names of M2ACL's released code."""
        motion = {theirs: f"motion.{ours}" for theirs, ours in REFERENCE_NAMES.items()}
        load_reference_state(self, state, {**motion, "conv": "values", "gamma": "gamma"})
