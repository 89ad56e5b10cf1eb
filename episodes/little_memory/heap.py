"""Return of free heap memory to the operating system, if the C library supports it.

Tensors saved by one chunk of two-pass training lie between memory that the chunk has freed, and glibc does not release
such gaps. Without trimming, a CPU process takes more than twice the memory of its tensors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch


def give_back_free_memory(device: torch.device) -> None:
    """Release free heap memory if the device is a CPU. Torch manages the memory of a GPU."""
    if device.type != "cpu":
        return
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """Return the C library's ``malloc_trim``, or None if it has none."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
