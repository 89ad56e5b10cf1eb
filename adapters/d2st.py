"""D2ST-Adapter (Pei et al., ICCV 2025, arXiv 2312.01431): deformable attention over space and over time.

It acts after each block, in a bottleneck. With the depth-wise position code ``dw`` on patches only:

    h = GELU(down(x)),  h = h + dw(h)
    out = x + GELU(up(GELU((h + S(LN h) + h + T(LN h)) / 2)))

``S`` and ``T`` are attention from all tokens of a video to a few points, which the queries shift. The spatial path
``S`` samples many positions in few frames, the temporal path ``T`` few positions in every frame.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..backbones.shape import BlockShape
from ..backbones.spec import BackboneSpec
from ..errors import DmgalError
from .base import BlockAdapterConfig, options_of
from .common import check_video_tokens, load_reference_state, patch_tokens, patch_volume
from .layer import AdapterLayer
from .tuner import BlockTuner


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
        """Return the sampling points ``(V, S, groups, 3)`` of each group of channels, from queries ``(V, T, N, a)``.

        Time, height and width of a point are from -1 at the first frame, row or column to 1 at the last.
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


@dataclass
class D2STConfig(BlockAdapterConfig):
    """Config of D2ST-Adapter (Pei et al.).

    Args:
        blocks: indices of the blocks with an adapter, negative ones counting from the end. None: all blocks.
        bottleneck: width of the adapter, a multiple of heads and groups. None: a quarter of the block's width,
            rounded down to such a multiple.
        num_heads: heads of the deformable attention.
        num_groups: groups of channels, each with its own sampling points.
    """

    blocks: list[int] | None = None
    bottleneck: int | None = None
    num_heads: int = 4
    num_groups: int = 4

    kind: ClassVar[str] = "D2ST"
    title: ClassVar[str] = "D2ST-Adapter (Pei et al., arXiv 2312.01431)"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("bottleneck", "num_heads", "num_groups"):
            self.check_whole_number(name, 1)

    def complete(self, spec: BackboneSpec) -> None:
        self.blocks = self.block_indices("blocks", spec.num_blocks)
        if not spec.sides:
            self.bottleneck = self._bottleneck(spec.width)
        for block in self.blocks:
            self._shape(spec.of_block(block).exit)

    def adapter_for(self, block: int, module: nn.Module, spec: BackboneSpec) -> nn.Module | None:
        assert self.blocks is not None
        return D2STAdapter(self._shape(spec.of_block(block).exit)) if block in self.blocks else None

    def _bottleneck(self, width: int) -> int:
        unit = math.lcm(self.num_heads, self.num_groups)
        return self.bottleneck or max(unit, width // 4 // unit * unit)

    def _shape(self, tokens: BlockShape) -> D2STShape:
        return D2STShape(
            width=tokens.width,
            bottleneck=self._bottleneck(tokens.width),
            num_prefix_tokens=tokens.num_prefix_tokens,
            grid=tokens.grid,
            **options_of(self, ("num_frames", "num_heads", "num_groups")),
        )


class D2STLayer(AdapterLayer):
    """D2ST-Adapters of one block, applied to its output."""

    rank = 1
    child = "d2st"
    prefix = "d2st_"

    def leave_block(self, tokens: Tensor) -> Tensor:
        return self.through(tokens)


class D2STModel(BlockTuner):
    """The tuner of ``D2STConfig``."""

    tuner_layer_cls = D2STLayer
