"""Rotary positions, without the random jitter of training."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn


def unchanging(positions: nn.Module) -> Any:
    """Return a module of rotary positions in evaluation mode.

    Positions must not change between calls, because a video may be encoded twice, and block by block.
    """
    return copy.copy(positions).eval() if positions.training else positions
