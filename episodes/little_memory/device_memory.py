"""How much memory a device has left, how much a piece of work takes, and whether an error says that there was none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from .live_bytes import LiveBytes

UNKNOWN = 2 * 10**9
"""Taken for what is left where the system does not tell."""
_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "could not create a primitive",  # oneDNN says no more, whatever it lacked
)


class Memory(NamedTuple):
    """Bytes above what was held before: the most at once, and what is held while the result lives."""

    peak: int
    held: int


def memory_of(work: Callable[[], object], device: torch.device) -> Memory:
    """What a piece of work allocates; it runs once."""
    if device.type != "cuda":
        with LiveBytes() as live:
            result = work()
        return Memory(live.peak, live.now)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = work()  # noqa: F841  (lives until its bytes are counted)
    return Memory(torch.cuda.max_memory_allocated(device) - before, torch.cuda.memory_allocated(device) - before)


def free_bytes(device: torch.device) -> int:
    """What can still be allocated: on a GPU also what torch has reserved and does not use, elsewhere free RAM.

    Of the RAM, the share of this process among those that a launcher started on this machine.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    if not available and {"SC_AVPHYS_PAGES", "SC_PAGE_SIZE"} <= getattr(os, "sysconf_names", {}).keys():
        available = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min([*available, *_left_to_container()], default=UNKNOWN) // processes


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory left, on a GPU or a CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def _left_to_container(folder: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """What a container's limit leaves, where there is one; files read long ago give way, as in ``MemAvailable``."""
    limit, used, told = (folder / f"memory.{name}" for name in ("max", "current", "stat"))
    if not (limit.exists() and used.exists()) or not (text := limit.read_text().strip()).isdigit():
        return []
    lines = told.read_text().splitlines() if told.exists() else []
    forgettable = [int(line.split()[1]) for line in lines if line.startswith("inactive_file ")]
    return [int(text) - int(used.read_text()) + sum(forgettable)]
