"""Video states on disk: any number of processes encode each video of a split once, then map the states into memory.

A block is encoded in one batch, so its bytes do not depend on the process or the time. Every checksum is verified when
a cache is opened; damaged blocks and blocks of changed videos are encoded again. ``state_files`` describes the files.
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...errors import DmgalError, differences, refuse_differences
from ...files import exclusively, listed, printable
from ...loader import Items, Loader
from ...progress import progress_bar
from ..recognizer import FewShotRecognizer
from .state_files import StateFiles
from .states import PrecomputedStates, check_states_can_be_kept, states_to_keep

_LOG = logging.getLogger(__name__)
FULL = (errno.ENOSPC, errno.EDQUOT)
BadOf = Callable[[], Sequence[int]]


@dataclass(frozen=True)
class Processes:
    """This process among those that encode together. ``wait`` returns when all of them have called it."""

    rank: int = 0
    count: int = 1
    wait: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class CachedStates:
    """The content of a cache.

    Attributes:
        states: states of all videos, mapped into memory read-only. Writing to them crashes the process.
        bad: indices of videos that could not be read, whose states are meaningless.
        encoded: number of videos that this process encoded in this call.
    """

    states: PrecomputedStates
    bad: tuple[int, ...]
    encoded: int

    @property
    def size(self) -> int:
        """Bytes of all states."""
        return sum(state.nbytes for state in self.states.tensors().values())


class StateCache:
    """A cache of the states of one split's videos.

    Args:
        folder: folder of this cache only, created if it does not exist.
        key: everything except the videos that shapes the states, as JSON values, see `identity.describe`.
        videos: one text per video that changes with it: name, size and modification time.
        block_size: videos encoded in one batch.
        half: if True, store float16. The states are then not exact, and predictions may differ.
    """

    def __init__(
        self, folder: Path, key: Mapping[str, object], videos: Sequence[str], block_size: int = 32, half: bool = False
    ) -> None:
        storage = {"kept_as": "float16, inexact" if half else "as computed", "block_size": block_size}
        self.key: dict[str, object] = json.loads(json.dumps({**key, **storage, "num_videos": len(videos)}))
        self.folder, self.half = folder, half
        self.files = StateFiles(folder, videos, block_size)

    def fill(
        self,
        recognizer: FewShotRecognizer,
        clips: Items[Tensor],
        num_workers: int = 0,
        device: torch.device | str = "cpu",
        progress: bool = True,
        processes: Processes | None = None,
        bad: BadOf = tuple,
        no_longer_bad: Sequence[int] = (),
    ) -> CachedStates:
        """Encode the missing blocks, then open the cache. All processes must call it with the same arguments.

        Args:
            recognizer: the recognizer described by the key, put into evaluation mode.
            clips: ``(T, 3, H, W)`` of each video, in the order of ``videos``.
            num_workers: processes that read clips, per encoding process.
            device: device that encodes.
            progress: if True, show progress bars and log which blocks are encoded again.
            processes: this process among all that encode. None: the only one.
            bad: returns the indices of the videos that this process could not read so far.
            no_longer_bad: indices of videos that are bad in the cache but readable now. They are encoded again.

        Raises:
            DmgalError: the states depend on the batch, or the disk is full. Blocks that were encoded remain valid.
        """
        check_states_can_be_kept(recognizer.eval())
        processes = processes or Processes()
        self.folder.mkdir(parents=True, exist_ok=True)
        if processes.rank:
            processes.wait()  # until rank 0 holds the lock and has deleted the unusable blocks
            return self._encode_missing(recognizer, clips, num_workers, device, False, processes, bad)
        name = printable(str(self.folder))
        with exclusively(self.folder / ".lock", lambda: _LOG.info("Waiting for another process in %s.", name)):
            for reason in self._delete_unusable(no_longer_bad):
                if progress:
                    _LOG.info("%s: %s", name, reason)
            processes.wait()
            return self._encode_missing(recognizer, clips, num_workers, device, progress, processes, bad)

    def open(self) -> CachedStates:
        """Open the cache without encoding anything.

        Raises:
            DmgalError: the cache is incomplete, damaged, stale or has another key. The error names the differences.
        """
        refuse_differences(
            differences(self.files.key(), self.key),
            f"The cache {self.folder} was made by another model or from other input.",
            "Use the model and input that made it, or choose another folder to make a new one.",
        )
        reasons = map(self.files.problem, range(len(self.files.blocks)))
        problems = [f"block {block}: {reason}" for block, reason in enumerate(reasons) if reason]
        if problems:
            raise DmgalError(
                f"The cache {self.folder} cannot be used.",
                received=f"{len(problems)} of {len(self.files.blocks)} blocks differ: {listed(problems)}",
                expected="every block complete, and its videos unchanged",
                remedy="Fill the cache again. Only these blocks are encoded.",
            )
        return CachedStates(*self.files.open(), encoded=0)

    def _encode_missing(
        self,
        recognizer: FewShotRecognizer,
        clips: Items[Tensor],
        num_workers: int,
        device: torch.device | str,
        progress: bool,
        processes: Processes,
        bad: BadOf,
    ) -> CachedStates:
        """Encode this process's share of the missing blocks, then open all blocks."""
        blocks = self.files.missing()[processes.rank :: processes.count]
        processes.wait()  # until all processes have listed the missing blocks, before the first one writes
        batches = [list(self.files.blocks[block]) for block in blocks]
        pinned = torch.device(device).type == "cuda"
        loader = Loader(clips, batch_sampler=batches, num_workers=num_workers, pin_memory=pinned)
        bar = progress_bar(loader, progress=progress, desc="encode", unit="batch", leave=False)
        for block, batch in zip(blocks, bar, strict=True):
            with torch.no_grad():
                states = states_to_keep(recognizer, batch.to(device, non_blocking=pinned)).tensors()
            self._write(block, _to_half(states) if self.half else states, set(bad()), is_first=block == blocks[0])
        processes.wait()  # until all processes have written
        opened = CachedStates(*self.files.open(), encoded=sum(map(len, batches)))
        processes.wait()  # until all processes have opened the files, before rank 0 releases the lock
        return opened

    def _write(self, block: int, states: Mapping[str, Tensor], bad: set[int], is_first: bool) -> None:
        try:
            if is_first:
                self.files.create(self.key, states)
            self.files.write(block, states, bad)
        except OSError as error:
            num_blocks, num_videos = len(self.files.blocks), len(self.files.videos)
            size = num_videos * sum(state[:1].nbytes for state in states.values())
            missing = f"{len(self.files.missing())} of {num_blocks} blocks missing"
            raise DmgalError(
                "The disk is full." if error.errno in FULL else "The cache cannot be written.",
                received=f"{self.folder}: {error.strerror}; {missing}",
                expected=f"{size / 2**20:.0f} MiB in total",
                remedy="Free disk space and run again to resume, or choose another location for the states, or none.",
            ) from error

    def _delete_unusable(self, no_longer_bad: Sequence[int]) -> list[str]:
        """Delete what cannot be used, and return a message for each reason."""
        files, stored = self.files, self.files.key()
        if not stored and len(files.missing()) == len(files.blocks):
            return []
        changed = differences(stored, self.key)
        if changed:
            files.clear()
            return [f"Deleted the states of another key, which differs in {', '.join(changed)}. Encoding all videos."]
        reasons = []
        for block in sorted({*range(len(files.blocks))}.difference(files.missing())):
            readable = [files.videos[index] for index in no_longer_bad if index in files.blocks[block]]
            reason = files.problem(block)
            if reason is None and readable:
                reason = f"{len(readable)} videos can be read now: {listed(readable)}"
            if reason is not None:
                files.forget(block)
                reasons.append(reason)
        return [f"{len(reasons)} blocks are encoded again: {listed(reasons)}"] if reasons else []


def _to_half(states: Mapping[str, Tensor]) -> dict[str, Tensor]:
    halves = {name: state.half() if state.is_floating_point() else state for name, state in states.items()}
    large = [name for name, state in halves.items() if state.is_floating_point() and not state.isfinite().all()]
    if large:
        raise DmgalError(
            "States cannot be stored as float16.",
            received=f"values beyond 65504 in {listed(large)}",
            expected="absolute values up to 65504",
            remedy="Store the states as computed.",
        )
    return halves
