"""What moves in a bottleneck of tokens, and attention over it: the part that Smga and Cmga share.

Our reconstruction of DMGAL-Adapter (arXiv 2411.11335): the paper calls its adapters simplified versions of S-MGA and
C-MGA, and neither code nor equations of the two are public. The motion features follow DMGAL's and M2ACL's published
differences, ``f_t = dw(b)_{t+1} - b_t`` and ``g_t = dw(b)_{t-1} - b_t``, on tokens. Temporal code and signed values are
ours: without one of them a clip and its reversal look alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Scales = Literal["single", "multi"]


class Motion(NamedTuple):
    """Differences to the next and to the previous frame, each ``(..., T, N, d)``."""

    forward: Tensor
    backward: Tensor


@dataclass(frozen=True)
class BottleneckShape:
    """Sizes and switches of one adapter's bottleneck."""

    width: int
    bottleneck: int
    motion_width: int
    num_frames: int
    num_prefix_tokens: int
    grid: tuple[int, int]
    scales: Scales = "single"
    attention: bool = True
    signed: bool = True
    temporal: bool = True

    @property
    def reads_motion(self) -> bool:
        return self.attention or self.signed


class MotionBottleneck(nn.Module):
    """Down to the bottleneck, motion in it, and back up; ``up`` starts at zero, so nothing changes at the start."""

    def __init__(self, shape: BottleneckShape, reads_values: bool) -> None:
        """What the shape's switches leave unread is not made, so every parameter is trained."""
        super().__init__()
        self.shape = shape
        bottleneck, motion_width = shape.bottleneck, shape.motion_width
        self.down = nn.Linear(shape.width, bottleneck)
        if shape.reads_motion:
            self.reduce = nn.Linear(bottleneck, motion_width)
            self.align = PatchConvolution(motion_width, shape)
        if reads_values:
            self.values = PatchConvolution(bottleneck, shape)
        self.up = nn.Linear(bottleneck, shape.width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        if shape.temporal:
            self.temporal = nn.Parameter(torch.zeros(shape.num_frames, 1, bottleneck))
        if shape.signed:
            self.signed = nn.Linear(2 * motion_width, bottleneck)
        if shape.scales == "multi" and shape.reads_motion:
            self.scales = MultiScale(motion_width, shape)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Tokens ``(V, T, N, C)`` in the bottleneck, ``(V, T, N, a)``, prefix tokens included."""
        hidden = self.down(tokens)
        if self.shape.temporal:
            hidden = hidden + self.temporal
        return F.gelu(hidden)

    def motion(self, hidden: Tensor) -> Motion:
        """Differences between each frame and the aligned next and previous one; zero at the ends."""
        here = self.reduce(hidden)
        aligned = self.align(here)
        nothing = torch.zeros_like(here[:, :1])
        motion = Motion(
            forward=torch.cat([aligned[:, 1:] - here[:, :-1], nothing], dim=1),
            backward=torch.cat([nothing, aligned[:, :-1] - here[:, 1:]], dim=1),
        )
        return Motion(*map(self.scales, motion)) if self.shape.scales == "multi" else motion

    def signed_values(self, motion: Motion) -> Tensor | float:
        """What motion itself adds, each direction with weights of its own; this is what tells a reversal apart."""
        return self.signed(torch.cat(motion, dim=-1)) if self.shape.signed else 0.0


class PatchConvolution(nn.Module):
    """Depth-wise 3x3 convolution over the patch grid of tokens ``(V, T, N, c)``; prefix tokens pass unchanged."""

    def __init__(self, channels: int, shape: BottleneckShape) -> None:
        super().__init__()
        self.num_prefix_tokens, self.grid = shape.num_prefix_tokens, shape.grid
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, tokens: Tensor) -> Tensor:
        prefix, maps = split_patches(tokens, self.num_prefix_tokens, self.grid)
        return join_patches(prefix, self.convolution(maps))


class MultiScale(nn.Module):
    """Motion at its own, at double and at half resolution, averaged; layer norm where S-MGA has batch norm.

    S-MGA's multi-scale block (arXiv 2411.11335), with layer norms because an adapter holds no batch statistics.
    """

    def __init__(self, channels: int, shape: BottleneckShape) -> None:
        super().__init__()
        self.num_prefix_tokens, self.grid = shape.num_prefix_tokens, shape.grid
        self.fine = nn.Conv2d(channels, channels, 3, padding=1)
        self.coarse = nn.Conv2d(channels, channels, 3, padding=1)
        self.fine_norm, self.coarse_norm = nn.GroupNorm(1, channels), nn.GroupNorm(1, channels)
        self.mix = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        prefix, maps = split_patches(tokens, self.num_prefix_tokens, self.grid)
        fine = self.fine_norm(self.fine(maps))
        coarse = self.coarse_norm(self.coarse(F.avg_pool2d(maps, 2, ceil_mode=True)))
        coarse = F.interpolate(coarse, size=self.grid, mode="nearest")
        return self.mix(join_patches(prefix, (maps + coarse + fine) / 3))


def split_patches(tokens: Tensor, num_prefix_tokens: int, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Tokens ``(V, T, N, c)`` as prefix ``(V, T, p, c)`` and maps ``(V*T, c, H, W)``."""
    prefix, patches = tokens[:, :, :num_prefix_tokens], tokens[:, :, num_prefix_tokens:]
    return prefix, patches.flatten(0, 1).transpose(1, 2).unflatten(2, grid)  # (V*T, c, H, W)


def join_patches(prefix: Tensor, maps: Tensor) -> Tensor:
    """The inverse of ``split_patches``."""
    patches = maps.flatten(2).transpose(1, 2).unflatten(0, prefix.shape[:2])  # (V, T, P, c)
    return torch.cat([prefix, patches], dim=2)


def motion_attention(queries: Motion, keys: Motion, values: Tensor) -> Tensor:
    """``(softmax(f f'^T / sqrt(d)) + softmax(g g'^T / sqrt(d))) / 2 @ values``, one product with the values.

    Args:
        queries: each ``(..., n, d)``.
        keys: each ``(..., m, d)``.
        values: ``(..., m, a)``.

    Returns:
        ``(..., n, a)``.
    """
    scale = queries.forward.shape[-1] ** -0.5
    to_next = torch.softmax((queries.forward * scale) @ keys.forward.transpose(-1, -2), dim=-1)
    to_previous = torch.softmax((queries.backward * scale) @ keys.backward.transpose(-1, -2), dim=-1)
    return (0.5 * (to_next + to_previous)) @ values
