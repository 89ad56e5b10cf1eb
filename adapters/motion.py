"""Motion features in a bottleneck of tokens and attention over them, shared by Smga and Cmga.

Our reconstruction of DMGAL-Adapter (arXiv 2411.11335). The paper calls its adapters simplified versions of S-MGA and
C-MGA. Neither code nor equations of the two are public. The motion features apply DMGAL's and M2ACL's published
differences, ``f_t = dw(b)_{t+1} - b_t`` and ``g_t = dw(b)_{t-1} - b_t``, to tokens. Temporal code and signed values are
ours. Without at least one of them, the adapter cannot distinguish a clip from its reversal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..errors import DmgalError
from .autograd import add_change
from .common import check_video_tokens

Scales = Literal["single", "multi"]
Directions = Literal["shared", "separate", "forward", "backward"]
Placement = Literal["after", "before"]
MAP_ENTRIES_IN_CACHE = 2**19
"""Number of attention map entries computed at a time on a CPU, 2 MB in float32."""


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
    directions: Directions = "shared"

    @property
    def reads_motion(self) -> bool:
        """True if attention or signed values need motion features."""
        return self.attention or self.signed


class MotionBottleneck(nn.Module):
    """Linear layers into and out of a bottleneck with motion. ``up`` starts at zero, so nothing changes at first."""

    def __init__(self, shape: BottleneckShape, reads_values: bool) -> None:
        """Create only the modules that the switches of the shape use, so that every parameter is trained."""
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
        if shape.directions == "separate" and shape.reads_motion:
            self.reduce_backward = nn.Linear(bottleneck, motion_width)
            self.align_backward = PatchConvolution(motion_width, shape)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Map tokens ``(V, T, N, C)``, prefix tokens included, into the bottleneck, ``(V, T, N, a)``."""
        self.check(tokens)
        return self.activated(self.down(tokens))

    def check(self, tokens: Tensor) -> None:
        """Raise DmgalError unless tokens ``(V, T, N, C)`` have the shape and number of frames of this adapter."""
        rows, columns = self.shape.grid
        check_video_tokens(tokens, self.shape.width, self.shape.num_prefix_tokens + rows * columns)
        num_frames = tokens.shape[1]
        if self.shape.temporal and num_frames != self.shape.num_frames:
            raise DmgalError(
                "An adapter with a temporal code accepts only the number of frames of its config.",
                received=f"{num_frames} frames per video",
                expected=f"{self.shape.num_frames} frames (num_frames of its DmgalConfig)",
                remedy=f"Sample {self.shape.num_frames} frames, or create the adapter with num_frames={num_frames} "
                "or temporal=False.",
            )

    def activated(self, reduced: Tensor) -> Tensor:
        """Add the temporal code to the output of ``down`` and apply GELU."""
        return F.gelu(reduced + self.temporal if self.shape.temporal else reduced)

    def motion(self, hidden: Tensor) -> Motion:
        """Return the differences of each frame to its aligned next and previous frame, zero at the ends."""
        frames = self.reduce(hidden)
        aligned = self.align(frames)
        zero = torch.zeros_like(frames[:, :1])
        forward = torch.cat([aligned[:, 1:] - frames[:, :-1], zero], dim=1)
        if self.shape.directions == "separate":
            frames = self.reduce_backward(hidden)
            aligned = self.align_backward(frames)
        motion = Motion(forward, backward=torch.cat([zero, aligned[:, :-1] - frames[:, 1:]], dim=1))
        if self.shape.directions in Motion._fields:  # twice, so that no weight changes its size
            motion = Motion(*2 * [getattr(motion, self.shape.directions)])
        return Motion(*map(self.scales, motion)) if self.shape.scales == "multi" else motion

    def back(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Return ``tokens + up(hidden)``."""
        return add_change(self.up(hidden), tokens)

    def signed_values(self, motion: Motion) -> Tensor | float:
        """Map signed motion to values with separate weights per direction, which make time reversal visible."""
        return self.signed(torch.cat(motion, dim=-1)) if self.shape.signed else 0.0


class PatchConvolution(nn.Module):
    """Depth-wise 3x3 convolution over the patch grid of tokens ``(V, T, N, c)``. Prefix tokens pass unchanged."""

    def __init__(self, channels: int, shape: BottleneckShape) -> None:
        super().__init__()
        self.num_prefix_tokens, self.grid = shape.num_prefix_tokens, shape.grid
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens of the same shape ``(V, T, N, c)``."""
        prefix, maps = split_patches(tokens, self.num_prefix_tokens, self.grid)
        return join_patches(prefix, self.convolution(maps))


class MultiScale(nn.Module):
    """Average of motion at three scales, after S-MGA's multi-scale block (arXiv 2411.11335).

    Layer norms replace S-MGA's batch norms, because an adapter holds no batch statistics.
    """

    def __init__(self, channels: int, shape: BottleneckShape) -> None:
        super().__init__()
        self.num_prefix_tokens, self.grid = shape.num_prefix_tokens, shape.grid
        self.fine = nn.Conv2d(channels, channels, 3, padding=1)
        self.coarse = nn.Conv2d(channels, channels, 3, padding=1)
        self.fine_normalization, self.coarse_normalization = nn.GroupNorm(1, channels), nn.GroupNorm(1, channels)
        self.mix = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return motion of the same shape ``(V, T, N, c)``."""
        prefix, maps = split_patches(tokens, self.num_prefix_tokens, self.grid)
        fine = self.fine_normalization(self.fine(maps))
        coarse = self.coarse_normalization(self.coarse(F.avg_pool2d(maps, 2, ceil_mode=True)))
        coarse = F.interpolate(coarse, size=self.grid, mode="nearest")
        return self.mix(join_patches(prefix, (maps + coarse + fine) / 3))


def split_patches(tokens: Tensor, num_prefix_tokens: int, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Split tokens ``(V, T, N, c)`` into prefix ``(V, T, p, c)`` and maps ``(V*T, c, H, W)``."""
    prefix, patches = tokens[:, :, :num_prefix_tokens], tokens[:, :, num_prefix_tokens:]
    return prefix, rearrange(patches, "v t (h w) c -> (v t) c h w", h=grid[0], w=grid[1])


def join_patches(prefix: Tensor, maps: Tensor) -> Tensor:
    """Invert ``split_patches``."""
    patches = rearrange(maps, "(v t) c h w -> v t (h w) c", t=prefix.shape[1])
    return torch.cat([prefix, patches], dim=2)


def motion_attention(queries: Motion, keys: Motion, values: Tensor) -> Tensor:
    """Compute ``(softmax(f f'^T / sqrt(d)) + softmax(g g'^T / sqrt(d))) / 2 @ values``, ``(..., n, a)``.

    Queries are ``(..., n, d)`` each, keys ``(..., m, d)`` each, and values ``(..., m, a)``. The maps are averaged
    first, so that there is one product with the values.
    """
    batch_dims_match = queries.forward.shape[:-2] == values.shape[:-2]
    is_exported = isinstance(values.shape[0], torch.SymInt)  # pieces would fix the number of videos
    if torch.is_grad_enabled() or values.device.type != "cpu" or not batch_dims_match or is_exported:
        return _attend(queries, keys, values)
    # Without gradients no map is saved. Pieces of the maps that fit the CPU cache give the same sums faster.
    rows = max(1, MAP_ENTRIES_IN_CACHE // values.shape[-2])
    frames = max(1, rows // queries.forward.shape[-2])
    parts = [part.reshape(-1, *part.shape[-2:]).split(frames) for part in (*queries, *keys, values)]
    attended = [
        _attend_by_rows(Motion(*piece[:2]), Motion(*piece[2:4]), piece[4], rows) for piece in zip(*parts, strict=True)
    ]
    return torch.cat(attended).view(*values.shape[:-2], -1, values.shape[-1])


def _attend_by_rows(queries: Motion, keys: Motion, values: Tensor, rows: int) -> Tensor:
    """Compute `motion_attention` for some rows of the maps at a time."""
    pieces = zip(*(direction.split(rows, dim=-2) for direction in queries), strict=True)
    return torch.cat([_attend(Motion(*piece), keys, values) for piece in pieces], dim=-2)


def _attend(queries: Motion, keys: Motion, values: Tensor) -> Tensor:
    """Compute `motion_attention` at once."""
    scale = queries.forward.shape[-1] ** -0.5
    to_next = torch.softmax((queries.forward * scale) @ keys.forward.transpose(-1, -2), dim=-1)
    to_previous = torch.softmax((queries.backward * scale) @ keys.backward.transpose(-1, -2), dim=-1)
    if torch.is_grad_enabled():
        return (0.5 * (to_next + to_previous)) @ values
    return to_next.add_(to_previous).mul_(0.5) @ values
