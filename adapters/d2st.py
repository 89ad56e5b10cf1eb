"""D2ST-Adapter (arXiv 2312.01431): deformable attention over space and over time in a bottleneck after each block.

    h = GELU(down(x)),  patches of h += dw3x3x3(patches of h)
    out = x + GELU(up(GELU((h + S(LN h) + h + T(LN h)) / 2)))

The spatial path ``S`` samples many positions in few frames, the temporal path ``T`` few positions in every frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import DmgalError
from .deformable_attention import DeformableAttention, SamplingWindow
from .reference_state import load_reference_state
from .video_tokens import check_video_tokens, patch_tokens, patch_volume


class _Axis(NamedTuple):
    """The paper's window along one axis. On an axis of size ``length`` it gives ``points`` points."""

    length: int
    kernel: int
    stride: int
    points: int


_FEW_FRAMES, _ALL_FRAMES = _Axis(8, 4, 4, 2), _Axis(8, 1, 1, 8)
_MANY_PATCHES, _FEW_PATCHES = _Axis(14, 5, 3, 4), _Axis(14, 7, 7, 2)


@dataclass(frozen=True)
class D2STShape:
    """Sizes of one D2ST-Adapter.

    A window of ``None`` is the paper's, designed for 8 frames of 14 x 14 patches: kernels (4, 5, 5) and (1, 7, 7),
    strides (4, 3, 3) and (1, 7, 7). A shorter axis gets the same number of points, but at most one per frame or patch.
    It uses the largest stride with room for these points, and the kernel that then covers the axis (ours).

    Raises:
        DmgalError: heads or groups do not divide the bottleneck, or a window is larger than the volume.
    """

    width: int
    bottleneck: int
    num_frames: int
    num_prefix_tokens: int
    grid: tuple[int, int]
    num_heads: int = 4
    num_groups: int = 4
    spatial_window: SamplingWindow | None = None
    temporal_window: SamplingWindow | None = None

    def __post_init__(self) -> None:
        if self.bottleneck % self.num_heads or self.bottleneck % self.num_groups:
            raise DmgalError(
                "Heads and groups do not divide the bottleneck of D2ST-Adapter.",
                received=f"bottleneck={self.bottleneck}, num_heads={self.num_heads}, num_groups={self.num_groups}",
                expected="a bottleneck that divides by both",
                remedy="Change the bottleneck, or the numbers of heads and groups.",
            )
        for window in self.windows():
            window.points((self.num_frames, *self.grid))

    def windows(self) -> tuple[SamplingWindow, SamplingWindow]:
        """Return the windows of the spatial and of the temporal path."""
        size = (self.num_frames, *self.grid)
        return (
            self.spatial_window or _window(size, _FEW_FRAMES, _MANY_PATCHES),
            self.temporal_window or _window(size, _ALL_FRAMES, _FEW_PATCHES),
        )


class D2STAdapter(nn.Module):
    """D2ST-Adapter of one block, which handles each video alone. ``up`` starts at zero, so it starts as the identity.

    Raises:
        DmgalError: the tokens do not fit the shape, or have too few frames for its windows.
    """

    def __init__(self, shape: D2STShape) -> None:
        super().__init__()
        self.shape = shape
        bottleneck = shape.bottleneck
        self.down = nn.Linear(shape.width, bottleneck)
        self.positions = nn.Conv3d(bottleneck, bottleneck, 3, padding=1, groups=bottleneck)
        self.spatial_normalization = nn.LayerNorm(bottleneck)
        self.temporal_normalization = nn.LayerNorm(bottleneck)
        self.spatial, self.temporal = (
            DeformableAttention(
                bottleneck, shape.num_heads, shape.num_groups, shape.num_prefix_tokens, shape.grid, window
            )
            for window in shape.windows()
        )
        self.up = nn.Linear(bottleneck, shape.width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``(V, T, N, C)`` to the same shape. ``T`` may be any number of frames that fits the windows."""
        rows, columns = self.shape.grid
        check_video_tokens(tokens, self.shape.width, self.shape.num_prefix_tokens + rows * columns)
        hidden = self._add_position_code(F.gelu(self.down(tokens)))
        mixed = self.spatial(self.spatial_normalization(hidden)) + self.temporal(self.temporal_normalization(hidden))
        return tokens + F.gelu(self.up(F.gelu(torch.add(hidden, mixed, alpha=0.5))))

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load weights under the names of the authors' released code."""
        names = {
            "down": "down",
            "pos_embed": "positions",
            "s_ln": "spatial_normalization",
            "t_ln": "temporal_normalization",
            "up": "up",
        }
        attention = {
            "proj_q": "queries",
            "proj_k": "keys",
            "proj_v": "values",
            "proj_out": "mixed",
            "conv_offset.0": "offset_convolution",
            "conv_offset.1.norm": "offset_normalization",
            "conv_offset.3": "offset",
        }
        for path, ours in {"s_attn": "spatial", "t_attn": "temporal"}.items():
            names |= {f"{path}.{part}": f"{ours}.{our_part}" for part, our_part in attention.items()}
        load_reference_state(self, {key: _as_linear(key, tensor) for key, tensor in state.items()}, names)

    def _add_position_code(self, hidden: Tensor) -> Tensor:
        """Add a convolutional position code to the patches of ``(V, T, N, a)``."""
        prefix, patches = hidden.tensor_split([self.shape.num_prefix_tokens], dim=2)
        code = self.positions(patch_volume(hidden, self.shape.num_prefix_tokens, self.shape.grid))
        return torch.cat([prefix, patches + patch_tokens(code)], dim=2)


def _window(size: tuple[int, int, int], time: _Axis, space: _Axis) -> SamplingWindow:
    frames, rows, columns = (_fit(length, axis) for length, axis in zip(size, (time, space, space), strict=True))
    return SamplingWindow((frames[0], rows[0], columns[0]), (frames[1], rows[1], columns[1]))


def _fit(length: int, axis: _Axis) -> tuple[int, int]:
    """Return kernel and stride for an axis. At the paper's length the formula for short axes gives the same values."""
    if length >= axis.length:
        return axis.kernel, axis.stride
    points = min(axis.points, length)
    stride = length // points
    return length - stride * (points - 1), stride


def _as_linear(key: str, tensor: Tensor) -> Tensor:
    """Reshape the released code's 1x1x1 offset convolution to the linear layer that replaces it here."""
    is_offset = key.endswith("conv_offset.3.weight") and tensor.shape[2:] == (1, 1, 1)
    return tensor.flatten(1) if is_offset else tensor
