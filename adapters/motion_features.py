"""Motion as the difference between a frame and its spatially aligned neighbor, seen at three scales.

The shared front of S-MGA and C-MGA (DMGAL, arXiv 2411.11335) and of TDSAM (M2ACL, ICASSP 2024), on patch maps at the
backbone's full width. In evaluation mode, or with frozen batch norms, the features of a video depend on nothing else.
"""

from __future__ import annotations

import math

import torch
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
"""The released code's names of the parts of `MotionFeatures`."""


class MotionFeatures(nn.Module):
    """Multi-scale features of the motion to the next and to the previous frame.

    ``b = BN(reduce(x))`` and ``c = align(b)``; forward ``f_t = c_{t+1} - b_t`` (zero at the last frame), backward
    ``g_t = c_{t-1} - b_t`` (zero at the first). Each difference ``d`` becomes
    ``merge((d + up(coarse(pool(d))) + fine(d)) / 3)``, with the same weights for both directions.

    In training mode both directions pass the batch norms as one batch: ours, without difference in evaluation mode.

    Args:
        channels: width of the patch maps.
        reduction: the motion has ``channels // reduction`` channels.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        if not 1 <= reduction <= channels:
            raise DmgalError(
                "Motion features cannot be built.",
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
        """Both directions' motion.

        Args:
            features: ``(V,T,C,H,W)``.

        Returns:
            ``(2,V,T,C',H,W)``: forward motion, backward motion.
        """
        videos, frames, _, height, width = check_patch_maps(features)
        frame_features = self.reduce_norm(self.reduce(features.flatten(0, 1)))
        aligned = self.align(frame_features)
        differences = _differences(
            frame_features.unflatten(0, (videos, frames)), aligned.unflatten(0, (videos, frames))
        )  # (2,V,T,C',H,W)
        merged = self._multi_scale(differences.flatten(0, 2))
        return merged.view(2, videos, frames, self.width, height, width)

    def _multi_scale(self, differences: Tensor) -> Tensor:
        """``(B,C',H,W)`` to the same shape."""
        size = differences.shape[-2:]
        window = [min(2, side) for side in size]  # a grid of one row has nothing to pool along it
        coarse = self.coarse_norm(self.coarse(functional.avg_pool2d(differences, window)))
        fine = self.fine_norm(self.fine(differences))
        return self.merge((differences + functional.interpolate(coarse, size=size) + fine) / 3)


def check_patch_maps(features: Tensor) -> torch.Size:
    """The five sizes of ``(V,T,C,H,W)`` patch maps; anything else is a `DmgalError`."""
    if features.dim() != 5:
        raise DmgalError(
            "Motion attention needs the patch maps of whole videos.",
            received=f"a tensor of shape {tuple(features.shape)}",
            expected="(videos, frames, channels, height, width)",
            remedy="Reshape frame-major maps with features.unflatten(0, (-1, num_frames)).",
        )
    return features.shape


def initialize_convolutions(module: nn.Module) -> None:
    """Normal with std ``sqrt(2 / (k * k * out))`` in every convolution, the released code's choice."""
    for convolution in module.modules():
        if isinstance(convolution, nn.Conv2d):
            fan_out = math.prod(convolution.kernel_size) * convolution.out_channels
            nn.init.normal_(convolution.weight, std=math.sqrt(2 / fan_out))


def _differences(frames: Tensor, aligned: Tensor) -> Tensor:
    """Aligned neighbor minus frame, to the next and to the previous frame; ``(V,T,...)`` each to ``(2,V,T,...)``."""
    still = torch.zeros_like(frames[:, :1])
    to_next = torch.cat((aligned[:, 1:] - frames[:, :-1], still), dim=1)
    to_previous = torch.cat((still, aligned[:, :-1] - frames[:, 1:]), dim=1)
    return torch.stack((to_next, to_previous))
