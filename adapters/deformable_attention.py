"""Attention from all tokens of a video to a few sampling points, which the queries shift.

D2ST-Adapter's deformable attention over space and time (Pei et al., ICCV 2025, arXiv 2312.01431).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..errors import DmgalError
from .video_tokens import patch_volume

OFFSET_RANGE = 2.0
"""Largest shift of a point along an axis, times the number of points there. The volume spans -1 to 1."""


@dataclass(frozen=True)
class SamplingWindow:
    """Kernel and stride, ``(frames, rows, columns)``, of the convolution that yields one point per output position."""

    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]

    def __post_init__(self) -> None:
        if any(len(sizes) != 3 or min(sizes) < 1 for sizes in (self.kernel, self.stride)):
            raise DmgalError(
                "The sampling window of the deformable attention is not valid.",
                received=f"kernel={self.kernel}, stride={self.stride}",
                expected="for each three numbers of at least 1: frames, rows and columns",
                remedy="Pass such a SamplingWindow, or None for one that fits the shape.",
            )

    def points(self, size: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return the number of points along each axis of a volume.

        Raises:
            DmgalError: the kernel is larger than the volume.
        """
        if any(length < kernel for length, kernel in zip(size, self.kernel, strict=True)):
            raise DmgalError(
                "The sampling window of the deformable attention is larger than the video.",
                received=f"{size[0]} frames of {size[1]} x {size[2]} patches",
                expected=f"at least {self.kernel[0]} frames of {self.kernel[1]} x {self.kernel[2]} patches, the kernel",
                remedy="Pass a smaller SamplingWindow or None for one that fits the shape, or sample more frames.",
            )
        steps = zip(size, self.kernel, self.stride, strict=True)
        frames, rows, columns = ((length - kernel) // stride + 1 for length, kernel, stride in steps)
        return frames, rows, columns


class DeformableAttention(nn.Module):
    """Attention from all tokens to points of the patch volume, shifted from a regular grid.

    Each group of channels has its own shift of a point, computed from the queries around the point. The features of a
    point are interpolated between patches.

    Args:
        channels: width ``a`` of the tokens, a multiple of ``num_heads`` and of ``num_groups``.
        num_heads: heads of the attention.
        num_groups: groups of channels, each with its own points.
        num_prefix_tokens: tokens before the patches. They are queries, but are never sampled.
        grid: rows and columns of patches.
        window: positions of the points before their shift.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        num_groups: int,
        num_prefix_tokens: int,
        grid: tuple[int, int],
        window: SamplingWindow,
    ) -> None:
        super().__init__()
        self.num_heads, self.num_groups = num_heads, num_groups
        self.num_prefix_tokens, self.grid, self.window = num_prefix_tokens, grid, window
        group = channels // num_groups
        self.queries = nn.Linear(channels, channels)
        self.keys = nn.Linear(channels, channels)
        self.values = nn.Linear(channels, channels)
        self.mixed = nn.Linear(channels, channels)
        self.offset_convolution = nn.Conv3d(group, group, window.kernel, window.stride, groups=group)
        self.offset_normalization = nn.LayerNorm(group)
        self.offset = nn.Linear(group, 3, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``(V, T, N, a)`` to the same shape."""
        queries = self.queries(tokens)
        points = self.points(queries)  # (V, S, groups, 3)
        sampled = self.sample(tokens, points)  # (V, S, a)
        attended = F.scaled_dot_product_attention(
            rearrange(queries, "v t n (h c) -> v h (t n) c", h=self.num_heads),
            rearrange(self.keys(sampled), "v s (h c) -> v h s c", h=self.num_heads),
            rearrange(self.values(sampled), "v s (h c) -> v h s c", h=self.num_heads),
        )
        return self.mixed(rearrange(attended, "v h (t n) c -> v t n (h c)", t=tokens.shape[1]))

    def points(self, queries: Tensor) -> Tensor:
        """Return the sampling points of each group of channels.

        Args:
            queries: ``(V, T, N, a)``.

        Returns:
            ``(V, S, groups, 3)``: time, height and width of ``S`` points, from -1 at the first frame, row or column to
            1 at the last.
        """
        volume = patch_volume(queries, self.num_prefix_tokens, self.grid)
        size = self.window.points((volume.shape[2], volume.shape[3], volume.shape[4]))
        convolution = self.offset_convolution  # shared by all groups
        hidden = F.conv3d(
            volume,
            convolution.weight.repeat(self.num_groups, 1, 1, 1, 1),
            None if convolution.bias is None else convolution.bias.repeat(self.num_groups),
            stride=convolution.stride,
            groups=volume.shape[1],
        )
        hidden = rearrange(hidden, "v (g c) t h w -> v (t h w) g c", g=self.num_groups)
        offsets = self.offset(F.gelu(self.offset_normalization(hidden))).tanh()
        reach = offsets.new_tensor([min(1.0, OFFSET_RANGE / length) for length in size])
        return offsets * reach + _cell_centers(size, offsets)[:, None]

    def sample(self, tokens: Tensor, points: Tensor) -> Tensor:
        """Interpolate the patches of tokens ``(V, T, N, a)`` at points ``(V, S, groups, 3)``, giving ``(V, S, a)``."""
        volume = patch_volume(tokens, self.num_prefix_tokens, self.grid)
        # grid_sample reads the order width, height, time.
        positions = rearrange(points.flip(-1).to(tokens.dtype), "v s g axes -> v s 1 1 g axes")
        # The loop samples views of the groups, because a single call would copy the volume.
        groups = [
            F.grid_sample(channels, positions[..., index, :], align_corners=True)
            for index, channels in enumerate(volume.chunk(self.num_groups, dim=1))
        ]
        return rearrange(torch.cat(groups, dim=1), "v c s 1 1 -> v s c")


def _cell_centers(size: tuple[int, int, int], like: Tensor) -> Tensor:
    """Return the centers of equal cells between -1 and 1, ``(S, 3)``."""
    axes = [(torch.arange(length, device=like.device, dtype=like.dtype) + 0.5) / length * 2 - 1 for length in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(math.prod(size), 3)
