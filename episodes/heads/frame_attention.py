"""Self-attention among the frames of a video after a scaled position code, the first step of HyRSM and MoLo."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ...adapters.common import SharedDropout
from ...errors import DmgalError


def scaled_position_code(frames: Tensor, feature_scale: float = 10.0, code_scale: float = 1.0) -> Tensor:
    """Return ``x * sqrt(D / feature_scale) + code_scale * code``, ``(V,T,D)`` to the same shape.

    The code is that of HyRSM and MoLo: column i is ``sin(t / 10000^(2i/D))`` for even i, ``cos`` for odd i. Each column
    has its own frequency, and wavelengths grow twice as fast as in "Attention is all you need".
    """
    num_frames, width = frames.shape[1:]
    dtype = torch.promote_types(frames.dtype, torch.float32)
    positions = torch.arange(num_frames, device=frames.device, dtype=dtype)
    columns = torch.arange(width, device=frames.device)
    exponents = 2 * columns.to(dtype) / width
    angles = positions[:, None] * 10000.0**-exponents  # (T,D)
    code = torch.where(columns % 2 == 0, angles.sin(), angles.cos())
    return frames * math.sqrt(width / feature_scale) + code_scale * code.to(frames.dtype)


def heads_apart(tokens: Tensor, num_heads: int) -> Tensor:
    """Split the width into attention heads, ``(B,N,D)`` to ``(B,heads,N,D/heads)``."""
    return rearrange(tokens, "b n (h d) -> b h n d", h=num_heads)


class FrameAttention(nn.Module):
    """Multi-head self-attention after a layer norm, with a residual; queries, keys and values have no bias.

    Args:
        width: width ``D`` of the frames.
        num_heads: number of attention heads; must divide the width.
        dropout: probability of dropout before the residual addition.

    Raises:
        DmgalError: the number of heads does not divide the width.
    """

    def __init__(self, width: int, num_heads: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        if width % num_heads:
            raise DmgalError(
                "The feature width is not divisible by the number of attention heads.",
                received=f"width {width}, {num_heads} heads",
                expected="a number of heads that divides the width",
                remedy="Choose another num_heads.",
            )
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.dropout = SharedDropout(dropout, video_dim=0)

    def forward(self, frames: Tensor) -> Tensor:
        """Apply self-attention to ``(V,T,D)``; return the same shape."""
        parts = self.qkv(self.norm(frames)).chunk(3, dim=-1)  # 3 x (V,T,D)
        query, key, value = (heads_apart(part, self.num_heads) for part in parts)
        attended = functional.scaled_dot_product_attention(query, key, value)
        return frames + self.dropout(self.out(rearrange(attended, "v h t d -> v t (h d)")))
