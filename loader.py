"""A torch ``DataLoader`` for the user's data sets: it keeps their errors, and works with little shared memory."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Sequence
from functools import cache, partial
from multiprocessing.reduction import ForkingPickler
from typing import Any, Protocol, TypedDict, TypeVar, Unpack

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from .errors import DmgalError
from .files import reason
from .parallel import end_with_parent

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
Item_co = TypeVar("Item_co", covariant=True)
SHARED_MEMORY = "/dev/shm"
LITTLE_MEMORY, FEW_FILES = 2**30, 512
"""Bytes of shared memory and number of open files below which workers send tensors through pipes. Containers have 64 MB
by default, and a batch that does not fit would end or block the worker."""


class Items(Protocol[Item_co]):
    """Interface of a data set: a number of items, by index."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Item_co: ...


class LoaderOptions(TypedDict, total=False):
    """Options of a torch ``DataLoader`` that `Loader` passes on."""

    batch_size: int | None
    batch_sampler: Sequence[list[int]]
    num_workers: int
    pin_memory: bool
    prefetch_factor: int | None
    multiprocessing_context: str | None
    worker_init_fn: Callable[[int], None] | None


class Loader(DataLoader[object]):
    """A torch ``DataLoader`` that raises the DmgalError of a worker unchanged.

    torch raises a new error with the traceback of the worker as its text. Here the worker returns the error as a value
    instead, and this process raises it. With little shared memory, the workers send their tensors through pipes.

    Args:
        dataset: items by index.
        collate_fn: combines the items of a batch.
        options: those of ``DataLoader``.
    """

    def __init__(
        self,
        dataset: Items[Item],
        collate_fn: Callable[[list[Item]], object] = default_collate,
        **options: Unpack[LoaderOptions],
    ) -> None:
        collate: Callable[..., object] = collate_fn
        if options.get("num_workers"):
            problem = little_shared_memory()
            if problem:
                _say(problem)
                collate = torch.stack if collate_fn is default_collate else collate_fn  # the default allocates there
            options["worker_init_fn"] = partial(_set_up_worker, options.get("worker_init_fn"), problem is not None)
        super().__init__(_ErrorsAsItems(dataset), collate_fn=partial(_collate_or_error, collate), **options)

    def __iter__(self) -> Any:
        """Start the workers, and return the batches.

        Raises:
            DmgalError: the system cannot start the workers.
        """
        try:
            return map(_raise_error, super().__iter__())
        except OSError as error:
            raise DmgalError(
                "The data workers cannot be started.",
                received=f"{self.num_workers} workers: {reason(error)}",
                expected=f"a writable {SHARED_MEMORY}, and enough open files, processes and memory",
                remedy="Use --data.num-workers 0, or raise the limit (ulimit -n, docker run --shm-size).",
            ) from error


@cache  # once in a process
def _say(problem: str) -> None:
    logger.info("%s: data workers send videos through pipes", problem)


def little_shared_memory() -> str | None:
    """Return the reason why tensors of workers may not fit in shared memory, or None."""
    if not hasattr(os, "statvfs"):  # Windows
        return None
    try:
        system = os.statvfs(SHARED_MEMORY)
    except OSError as error:
        if os.name == "posix" and error.errno == errno.ENOENT and os.path.isdir("/proc"):
            return f"There is no {SHARED_MEMORY}"
        return None
    free = system.f_bavail * system.f_frsize
    if free < LITTLE_MEMORY:
        return f"{SHARED_MEMORY} has only {free / 2**20:.0f} MB"
    import resource  # Windows has none

    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return f"Only {files} files may be open" if 0 <= files < FEW_FILES else None


def _set_up_worker(worker_init: Callable[[int], None] | None, uses_pipes: bool, worker: int) -> None:
    end_with_parent()  # torch's workers look for their parent every five seconds
    if uses_pipes:
        ForkingPickler.register(Tensor, _as_bytes)
    if worker_init is not None:
        worker_init(worker)


def _as_bytes(tensor: Tensor) -> tuple[Callable[..., Tensor], tuple[bytearray, torch.dtype, torch.Size]]:
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return _from_bytes, (bytearray(flat.numpy().data), tensor.dtype, tensor.shape)


def _from_bytes(data: bytearray, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).view(shape)


class _ErrorsAsItems(Dataset[object]):
    """A data set that returns a DmgalError instead of raising it."""

    def __init__(self, dataset: Items[object]) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> object:
        try:
            return self._dataset[index]
        except DmgalError as error:
            return error


def _collate_or_error(collate: Callable[[object], object], items: object) -> object:
    errors = [item for item in (items if isinstance(items, list) else [items]) if isinstance(item, DmgalError)]
    return errors[0] if errors else collate(items)


def _raise_error(batch: object) -> object:
    if isinstance(batch, DmgalError):
        raise batch
    return batch
