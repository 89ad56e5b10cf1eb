"""Positions that a library tells every block, as the encoder wants them: the same whenever it asks."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn


def unchanging(positions: nn.Module) -> Any:
    """A module of rotary positions without the jitter of training: a video may be encoded twice, and in blocks."""
    return copy.copy(positions).eval() if positions.training else positions
