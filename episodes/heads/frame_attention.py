"""Self-attention among the frames of a video behind a scaled position code: what HyRSM and MoLo do to frames first."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...adapters.shared_dropout import SharedDropout
from ...errors import DmgalError


def scaled_position_code(frames: Tensor, feature_scale: float = 10.0, code_scale: float = 1.0) -> Tensor:
    """``x * sqrt(D / feature_scale) + code_scale * code``, ``(V,T,D)`` to the same shape.

    The code is HyRSM's and MoLo's: in column i ``sin(t / 10000^(2i/D))`` where i is even, its cosine where i is odd. So
    no two columns have one frequency, and waves lengthen twice as fast as in "Attention is all you need".
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
    """``(B,N,D)`` to ``(B,heads,N,D/heads)``."""
    return tokens.unflatten(-1, (num_heads, -1)).transpose(1, 2)


class FrameAttention(nn.Module):
    """Multi-head self-attention behind a layer norm, with a residual; no bias on queries, keys and values.

    Args:
        width: ``D`` of the frames.
        num_heads: must divide the width.
        dropout: of what is added.

    Raises:
        DmgalError: heads that do not divide the width.
    """

    def __init__(self, width: int, num_heads: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        if width % num_heads:
            raise DmgalError(
                "The frames' features do not divide among the attention heads.",
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
        """``(V,T,D)`` to the same shape."""
        parts = self.qkv(self.norm(frames)).chunk(3, dim=-1)  # 3 x (V,T,D)
        query, key, value = (heads_apart(part, self.num_heads) for part in parts)
        attended = functional.scaled_dot_product_attention(query, key, value)
        return frames + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
