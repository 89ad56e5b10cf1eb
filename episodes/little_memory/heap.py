"""Gives what is free inside the process's heap back to the system, where the C library can.

What two passes keep of one chunk lies between what the chunk has freed, and glibc holds on to such holes: without this
a process on a CPU takes more than twice what its tensors do.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch


def give_back_free_memory(device: torch.device) -> None:
    """Only for work on a CPU; a GPU's memory is torch's to manage."""
    if device.type == "cpu" and (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
