"""Memory of a computation: free bytes of a device, peak of a call, exact bytes of live tensors, out-of-memory errors.

Tensors saved by one chunk of two-pass training lie between memory that the chunk has freed, and glibc does not release
such gaps. Free heap memory is therefore returned to the operating system explicitly. Without this, a CPU process takes
more than twice the memory of its tensors.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

UNKNOWN = 2 * 10**9
"""Assumed free memory in bytes if the system does not report it."""
_OUT_OF_MEMORY_TEXTS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "could not create a primitive",  # oneDNN gives no reason
)


class Memory(NamedTuple):
    """Additional bytes: the peak during the call, and what is held as long as the result exists."""

    peak: int
    held: int


def memory_of(work: Callable[[], object], device: torch.device) -> Memory:
    """Run a function once and return the memory that it allocates."""
    if device.type != "cuda":
        with LiveBytes() as live:
            result = work()
        return Memory(live.peak, live.now)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = work()  # noqa: F841  (kept alive until its bytes are counted)
    return Memory(torch.cuda.max_memory_allocated(device) - before, torch.cuda.memory_allocated(device) - before)


def free_bytes(device: torch.device) -> int:
    """Return the number of bytes that can still be allocated.

    On a GPU this includes what torch has reserved but does not use. On other devices it is this process's share of the
    free RAM, among the processes that a launcher started on this machine.
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
    return min([*available, *_free_in_container()], default=UNKNOWN) // processes


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error means that a GPU or CPU ran out of memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY_TEXTS)


def _free_in_container(folder: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Return the free memory within a container's limit, or an empty list without a limit.

    Inactive file pages count as free, as in ``MemAvailable``.
    """
    limit_file, used_file, stat_file = (folder / f"memory.{name}" for name in ("max", "current", "stat"))
    if not (limit_file.exists() and used_file.exists()):
        return []
    limit = limit_file.read_text().strip()
    if not limit.isdigit():
        return []
    lines = stat_file.read_text().splitlines() if stat_file.exists() else []
    inactive_files = [int(line.split()[1]) for line in lines if line.startswith("inactive_file ")]
    return [int(limit) - int(used_file.read_text()) + sum(inactive_files)]


class LiveBytes(TorchDispatchMode):
    """A context that counts the memory allocated by operations, including backward passes on the CPU.

    The count is exact and repeatable but slow. It excludes temporary memory inside an operation, and tensors that
    existed before and are only read (weights, inputs).

    Attributes:
        now: current number of live bytes.
        peak: maximum number of live bytes.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> object:
        for tensor in _tensors((args, kwargs)):
            self._seen.add(tensor.untyped_storage())  # a result that shares this storage is not an allocation
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._subtract, size)

    def _subtract(self, size: int) -> None:
        self.now -= size


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor)]


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
