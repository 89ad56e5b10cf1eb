"""Motion as the difference between a frame and its spatially aligned neighbor, at three scales.

S-MGA and C-MGA (DMGAL, arXiv 2411.11335) and TDSAM (M2ACL, ICASSP 2024) share this module. It reads patch maps at the
backbone's full width. In evaluation mode, or with frozen batch norms, a video's features depend on that video alone.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ..errors import DmgalError

REFERENCE_NAMES = {
    "conv1": "reduce",
    "bn1": "reduce_norm",
    "conv2": "align",
    "conv3_smallscale2": "coarse",
    "bn3_smallscale2": "coarse_norm",
    "conv3_smallscale4": "fine",
    "bn3_smallscale4": "fine_norm",
    "conv3": "merge",
}
"""Our names of the parts of `MotionFeatures`, by their names in the released code."""


class MotionFeatures(nn.Module):
    """Multi-scale features of the motion to the next and to the previous frame.

    ``b = BN(reduce(x))`` and ``c = align(b)``; forward ``f_t = c_{t+1} - b_t`` (zero at the last frame), backward
    ``g_t = c_{t-1} - b_t`` (zero at the first). Each difference ``d`` becomes
    ``merge((d + up(coarse(pool(d))) + fine(d)) / 3)``, with the same weights for both directions.

    In training mode both directions pass the batch norms as one batch (ours). Evaluation mode is not affected.

    Args:
        channels: width of the patch maps.
        reduction: ``channels // reduction`` channels of motion.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        if not 1 <= reduction <= channels:
            raise DmgalError(
                "The reduction of the motion features is not valid.",
                received=f"channels={channels}, reduction={reduction}",
                expected="a reduction from 1 to the number of channels",
                remedy="Lower the reduction.",
            )
        width = channels // reduction
        self.width = width
        self.reduce = nn.Conv2d(channels, width, 1, bias=False)
        self.reduce_norm = nn.BatchNorm2d(width)
        self.align = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.coarse = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.coarse_norm = nn.BatchNorm2d(width)
        self.fine = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.fine_norm = nn.BatchNorm2d(width)
        self.merge = nn.Conv2d(width, width, 1, bias=False)
        initialize_convolutions(self)

    def forward(self, features: Tensor) -> Tensor:
        """Return the motion features of both directions.

        Args:
            features: ``(V,T,C,H,W)``.

        Returns:
            ``(2,V,T,C',H,W)``: forward motion, backward motion.
        """
        frames = check_patch_maps(features)[1]
        reduced = self.reduce_norm(self.reduce(rearrange(features, "v t c h w -> (v t) c h w")))
        aligned = self.align(reduced)
        differences = _differences(
            rearrange(reduced, "(v t) c h w -> v t c h w", t=frames),
            rearrange(aligned, "(v t) c h w -> v t c h w", t=frames),
        )
        merged = self._multi_scale(rearrange(differences, "d v t c h w -> (d v t) c h w"))
        return rearrange(merged, "(d v t) c h w -> d v t c h w", d=2, t=frames)

    def _multi_scale(self, differences: Tensor) -> Tensor:
        """Map differences ``(B,C',H,W)`` to the same shape."""
        size = differences.shape[-2:]
        window = [min(2, side) for side in size]  # a grid of one row cannot be pooled along it
        coarse = self.coarse_norm(self.coarse(functional.avg_pool2d(differences, window)))
        fine = self.fine_norm(self.fine(differences))
        return self.merge((differences + functional.interpolate(coarse, size=size) + fine) / 3)


def check_patch_maps(features: Tensor) -> torch.Size:
    """Return the sizes of patch maps ``(V,T,C,H,W)``. Raise DmgalError for any other number of dimensions."""
    if features.dim() != 5:
        raise DmgalError(
            "Motion attention needs the patch maps of whole videos.",
            received=f"a tensor of shape {tuple(features.shape)}",
            expected="(videos, frames, channels, height, width)",
            remedy="Reshape frame-major maps with features.unflatten(0, (-1, num_frames)).",
        )
    return features.shape


def initialize_convolutions(module: nn.Module) -> None:
    """Initialize every convolution from a normal of std ``sqrt(2 / (k * k * out))``, as in the released code."""
    for convolution in module.modules():
        if isinstance(convolution, nn.Conv2d):
            fan_out = math.prod(convolution.kernel_size) * convolution.out_channels
            nn.init.normal_(convolution.weight, std=math.sqrt(2 / fan_out))


def _differences(frames: Tensor, aligned: Tensor) -> Tensor:
    """Return the next and the previous aligned frame minus each frame, ``(2,V,T,...)``."""
    zero = torch.zeros_like(frames[:, :1])
    to_next = torch.cat((aligned[:, 1:] - frames[:, :-1], zero), dim=1)
    to_previous = torch.cat((zero, aligned[:, :-1] - frames[:, 1:]), dim=1)
    return torch.stack((to_next, to_previous))
