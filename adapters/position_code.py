"""Sinusoidal position code of "Attention is all you need", which DMGAL, TRX and STRM add to their tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoidal_position_code(length: int, width: int, *, like: Tensor, scale: float = 0.1) -> Tensor:
    """Return a fixed code per position with sines in even columns and cosines in odd ones.

    Args:
        length: number of positions.
        width: number of columns, even or odd.
        like: tensor with the device and dtype of the result.
        scale: amplitude of the code, 0.1 in the released code of DMGAL, TRX and STRM.

    Returns:
        ``(length, width)``.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)  # bfloat16 cannot represent positions above 256 exactly
    positions = torch.arange(length, device=like.device, dtype=dtype)
    frequencies = torch.exp(torch.arange(0, width, 2, device=like.device, dtype=dtype) * (-math.log(10000.0) / width))
    angles = positions[:, None] * frequencies  # (length, ceil(width / 2))
    code = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[:, :width]
    return (scale * code).to(like.dtype)
