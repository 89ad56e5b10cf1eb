"""The sinusoidal position code of "Attention is all you need", as DMGAL, TRX and STRM add it to their tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoidal_position_code(length: int, width: int, *, like: Tensor, scale: float = 0.1) -> Tensor:
    """A fixed code per position: sines in even columns, cosines in odd ones.

    Args:
        length: number of positions.
        width: number of columns; may be odd.
        like: gives device and dtype.
        scale: the code's amplitude; 0.1 in the released code of DMGAL, TRX and STRM.

    Returns:
        ``(length, width)``.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)  # positions above 256 have no exact bfloat16
    positions = torch.arange(length, device=like.device, dtype=dtype)
    frequencies = torch.exp(torch.arange(0, width, 2, device=like.device, dtype=dtype) * (-math.log(10000.0) / width))
    angles = positions[:, None] * frequencies  # (length, ceil(width / 2))
    code = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[:, :width]
    return (scale * code).to(like.dtype)
