"""Attention of all tokens of a video to a few of its points, which move to where the queries ask for them.

D2ST-Adapter's deformable attention over space and time (Pei et al., ICCV 2025, arXiv 2312.01431).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import DmgalError
from .video_tokens import patch_volume

OFFSET_RANGE = 2.0
"""A point moves by at most this over the number of points along an axis, where the volume reaches from -1 to 1."""


@dataclass(frozen=True)
class SamplingWindow:
    """Kernel and stride, ``(frames, rows, columns)``, of the convolution that gives one point per place it stops."""

    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]

    def __post_init__(self) -> None:
        if any(len(sizes) != 3 or min(sizes) < 1 for sizes in (self.kernel, self.stride)):
            raise DmgalError(
                "Deformable attention cannot place its sampling points.",
                received=f"kernel={self.kernel}, stride={self.stride}",
                expected="each three numbers from 1: frames, rows and columns",
                remedy="give such a SamplingWindow, or None for one that fits the shape",
            )

    def points(self, size: tuple[int, int, int]) -> tuple[int, int, int]:
        """Number of points along each axis of a volume.

        Raises:
            DmgalError: the kernel is larger than the volume.
        """
        if any(length < kernel for length, kernel in zip(size, self.kernel, strict=True)):
            raise DmgalError(
                "Deformable attention has no room for its sampling points.",
                received=f"{size[0]} frames of {size[1]} x {size[2]} patches",
                expected=f"at least {self.kernel[0]} frames of {self.kernel[1]} x {self.kernel[2]} patches, the kernel",
                remedy="give a smaller SamplingWindow, or None for one that fits the shape; or sample more frames",
            )
        steps = zip(size, self.kernel, self.stride, strict=True)
        frames, rows, columns = ((length - kernel) // stride + 1 for length, kernel, stride in steps)
        return frames, rows, columns


class DeformableAttention(nn.Module):
    """Queries are all tokens; keys and values are points of the patch volume, shifted from a regular grid.

    The shift of a point is a function of the queries around it, for each group of channels its own; a point's features
    are interpolated between patches.

    Args:
        channels: width ``a`` of the tokens, divided by both of the next.
        num_heads: heads of the attention.
        num_groups: groups of channels with points of their own.
        num_prefix_tokens: tokens before the patches; they ask, but are not sampled.
        grid: rows and columns of patches.
        window: where the points are.
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
        """Tokens ``(V, T, N, a)`` to the same shape."""
        queries = self.queries(tokens)
        points = self.points(queries)  # (V, S, groups, 3)
        sampled = self.sample(tokens, points)  # (V, S, a)
        attended = F.scaled_dot_product_attention(
            self._heads(queries.flatten(1, 2)), self._heads(self.keys(sampled)), self._heads(self.values(sampled))
        )  # (V, heads, T*N, a / heads)
        return self.mixed(attended.transpose(1, 2).reshape(tokens.shape))

    def points(self, queries: Tensor) -> Tensor:
        """Where each group of channels is sampled.

        Args:
            queries: ``(V, T, N, a)``.

        Returns:
            ``(V, S, groups, 3)``: time, height and width of ``S`` points, -1 the first frame, row or column and 1 the
            last.
        """
        volume = patch_volume(queries, self.num_prefix_tokens, self.grid)
        size = self.window.points((volume.shape[2], volume.shape[3], volume.shape[4]))
        convolution, repeats = self.offset_convolution, self.num_groups
        hidden = F.conv3d(
            volume,
            convolution.weight.repeat(repeats, 1, 1, 1, 1),  # the groups share it
            None if convolution.bias is None else convolution.bias.repeat(repeats),
            stride=convolution.stride,
            groups=volume.shape[1],
        )  # (V, a, *size)
        hidden = hidden.flatten(2).transpose(1, 2).unflatten(2, (self.num_groups, -1))  # (V, S, groups, a / groups)
        offsets = self.offset(F.gelu(self.offset_normalization(hidden))).tanh()
        reach = offsets.new_tensor([min(1.0, OFFSET_RANGE / length) for length in size])
        return offsets * reach + _cell_centers(size, offsets)[:, None]

    def sample(self, tokens: Tensor, points: Tensor) -> Tensor:
        """Features ``(V, S, a)`` of the patches of tokens ``(V, T, N, a)`` at points ``(V, S, groups, 3)``."""
        volume = patch_volume(tokens, self.num_prefix_tokens, self.grid)
        places = points.flip(-1).to(tokens.dtype)[:, :, None, None]  # width, height, time: (V, S, 1, 1, groups, 3)
        # Group by group on views: all at once would copy the volume.
        groups = [
            F.grid_sample(part, places[..., index, :], align_corners=True)  # (V, a / groups, S, 1, 1)
            for index, part in enumerate(volume.chunk(self.num_groups, dim=1))
        ]
        return torch.cat(groups, dim=1).flatten(2).transpose(1, 2)

    def _heads(self, tokens: Tensor) -> Tensor:
        """``(V, n, a)`` as ``(V, heads, n, a / heads)``."""
        return tokens.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


def _cell_centers(size: tuple[int, int, int], like: Tensor) -> Tensor:
    """Centers of equal cells between -1 and 1, ``(S, 3)``."""
    axes = [(torch.arange(length, device=like.device, dtype=like.dtype) + 0.5) / length * 2 - 1 for length in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(math.prod(size), 3)
