"""Video states on disk: any number of processes encode each video of a split once, then map the states into memory.

    FOLDER/key.json            everything that shapes the states, and the tensors' names, types and shapes
    FOLDER/NAME.raw            one tensor of all videos, in the order of the videos
    FOLDER/blocks/00012.json   record of one finished block: its videos and the checksums of its bytes

A block is encoded in one batch, so its bytes do not depend on the process or the time. A block's record is written
atomically after its bytes, so a build that was killed resumes. Every checksum is verified when a cache is opened;
damaged blocks and blocks of changed videos are encoded again.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from xxhash import xxh3_64_hexdigest

from ...errors import DmgalError
from ...files import atomic_write, exclusively, listed, printable
from ...progress import progress_bar
from ..recognizer import FewShotRecognizer
from .identity import differences, refuse_other
from .states import PrecomputedStates, check_states_can_be_kept, precompute_states

KEY = "key.json"
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
        size: bytes on disk.
    """

    states: PrecomputedStates
    bad: tuple[int, ...]
    encoded: int
    size: int


@dataclass
class StateCache:
    """A cache of the states of one split's videos.

    Args:
        folder: folder of this cache only, created if it does not exist.
        key: everything except the videos that shapes the states, as JSON values, see `cache_key.describe`.
        videos: one text per video that changes with it: name, size and modification time.
        block_size: videos encoded in one batch.
        half: if True, store float16. The states are then not exact, and predictions may differ.
    """

    folder: Path
    key: Mapping[str, Any]
    videos: Sequence[str]
    block_size: int = 32
    half: bool = False
    _files: dict[str, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        storage = {"kept_as": "float16, inexact" if self.half else "as computed", "block_size": self.block_size}
        self.key = json.loads(json.dumps({**self.key, **storage, "num_videos": len(self.videos)}))

    def fill(
        self,
        recognizer: FewShotRecognizer,
        clips: Dataset[Tensor],
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
        with exclusively(self.folder / ".lock", lambda: _log(f"Waiting for another process in {self.folder}.")):
            for reason in self._delete_unusable(no_longer_bad):
                if progress:
                    _log(f"{self.folder}: {reason}")
            processes.wait()
            return self._encode_missing(recognizer, clips, num_workers, device, progress, processes, bad)

    def open(self) -> CachedStates:
        """Open the cache without encoding anything.

        Raises:
            DmgalError: the cache is incomplete, damaged, stale or has another key. The error names the differences.
        """
        stored = self._read_key()
        layout = stored.pop("tensors", {})
        refuse_other(f"The cache {self.folder}", stored, self.key)
        reasons = {block: self._problem(block) for block in range(self.num_blocks)}
        problems = [f"block {block}: {reason}" for block, reason in reasons.items() if reason]
        if problems:
            raise DmgalError(
                f"The cache {self.folder} cannot be used.",
                received=f"{len(problems)} of {self.num_blocks} blocks differ: {listed(problems)}",
                expected="every block complete, and its videos unchanged",
                remedy="Fill the cache again. Only these blocks are encoded.",
            )
        return self._map_states(layout, 0)

    @property
    def num_blocks(self) -> int:
        """The number of blocks of a complete cache."""
        return -(-len(self.videos) // self.block_size)

    def missing(self) -> list[int]:
        """Return the blocks that have no record."""
        return [block for block in range(self.num_blocks) if not self._record_path(block).exists()]

    def _encode_missing(
        self,
        recognizer: FewShotRecognizer,
        clips: Dataset[Tensor],
        num_workers: int,
        device: torch.device | str,
        progress: bool,
        processes: Processes,
        bad: BadOf,
    ) -> CachedStates:
        """Encode this process's share of the missing blocks, then open all blocks."""
        blocks = self.missing()[processes.rank :: processes.count]
        processes.wait()  # until all processes have listed the missing blocks, before the first one writes
        batches = [list(self._videos_of(block)) for block in blocks]
        pinned = torch.device(device).type == "cuda"
        loader = DataLoader(clips, batch_sampler=batches, num_workers=num_workers, pin_memory=pinned)
        bar = progress_bar(loader, progress=progress, desc="encode", unit="batch", leave=False)
        try:
            for block, batch in zip(blocks, bar, strict=True):
                with torch.no_grad():
                    states = precompute_states(recognizer, batch.to(device, non_blocking=pinned)).to("cpu")
                self._write(block, self._as_stored(states.tensors()), set(bad()))
        finally:
            for handle in self._files.values():
                os.close(handle)
            self._files.clear()
        processes.wait()  # until all processes have written
        opened = self._map_states(self._layout(), sum(map(len, batches)))
        processes.wait()  # until all processes have opened the files, before rank 0 releases the lock
        return opened

    def _as_stored(self, states: dict[str, Tensor]) -> dict[str, Tensor]:
        if not self.half:
            return states
        halves = {name: t.half() if t.is_floating_point() else t for name, t in states.items()}
        large = [name for name, t in halves.items() if t.is_floating_point() and not t.isfinite().all()]
        if large:
            raise DmgalError(
                "States cannot be stored as float16.",
                received=f"values beyond 65504 in {listed(large)}",
                expected="absolute values up to 65504",
                remedy="Store the states as computed.",
            )
        return halves

    def _write(self, block: int, states: Mapping[str, Tensor], bad: set[int]) -> None:
        try:
            self._write_block(block, states, bad)
        except OSError as error:
            raise DmgalError(
                "The disk is full." if error.errno in FULL else "The cache cannot be written.",
                received=f"{self.folder}: {error.strerror}; {len(self.missing())} of {self.num_blocks} blocks missing",
                expected=f"{self._total_bytes() / 2**20:.0f} MiB in total",
                remedy="Free disk space and run again to resume, or choose another location for the states, or none.",
            ) from error

    def _write_block(self, block: int, states: Mapping[str, Tensor], bad: set[int]) -> None:
        if not self._files:
            self._create_files(states)
        checksums, indices = {}, self._videos_of(block)
        for name, tensor in states.items():
            data = tensor.contiguous().flatten().view(torch.uint8).numpy()
            checksums[name] = xxh3_64_hexdigest(data)
            offset, unwritten = indices.start * (len(data) // len(indices)), memoryview(data)  # type: ignore[arg-type]
            while unwritten:
                written = os.pwrite(self._files[name], unwritten, offset)
                offset, unwritten = offset + written, unwritten[written:]
        record = {
            "videos": [self.videos[index] for index in indices],
            "bad": sorted(bad.intersection(indices)),
            "checksums": checksums,
        }
        _write_json(self._record_path(block), record)

    def _create_files(self, states: Mapping[str, Tensor]) -> None:
        """Create and open the files. Every process calls this; existing content does not change."""
        layout = {
            name: {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": [*tensor.shape[1:]]}
            for name, tensor in states.items()
        }
        if self._read_key().get("tensors") != layout:
            _write_json(self.folder / KEY, {**self.key, "tensors": layout})
        (self.folder / "blocks").mkdir(exist_ok=True)
        for name, tensor in states.items():
            handle = self._files[name] = os.open(self._data_path(name), os.O_RDWR | os.O_CREAT, 0o666)
            size = tensor[:1].nbytes * len(self.videos)
            if os.fstat(handle).st_size < size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle, 0, size)  # fails now if the disk is full, not in the middle

    def _delete_unusable(self, no_longer_bad: Sequence[int]) -> list[str]:
        """Delete what cannot be used, and return a message for each reason."""
        stored = self._read_key()
        layout = stored.pop("tensors", None)
        if not stored and not self._has_records():
            return []
        if not layout:
            self._clear({})
            return ["Deleted states without a key. Encoding all videos."]
        changed = differences(stored, self.key)
        if changed:
            self._clear(layout)
            return [f"Deleted the states of another key, which differs in {', '.join(changed)}. Encoding all videos."]
        reasons = []
        for block in range(self.num_blocks):
            if not self._record_path(block).exists():
                continue
            readable = [self.videos[index] for index in no_longer_bad if index in self._videos_of(block)]
            reason = self._problem(block)
            if reason is None and readable:
                reason = f"{len(readable)} videos can be read now: {listed(readable)}"
            if reason is not None:
                self._record_path(block).unlink()
                reasons.append(reason)
        return [f"{len(reasons)} blocks are encoded again: {listed(reasons)}"] if reasons else []

    def _problem(self, block: int) -> str | None:
        """Return the reason why a block cannot be used, or None."""
        record = _read_json(self._record_path(block))
        if not record:
            return "it has no record"
        videos = [self.videos[index] for index in self._videos_of(block)]
        changed = [now for now, before in zip(videos, record.get("videos", ()), strict=False) if now != before]
        if changed or len(videos) != len(record.get("videos", ())):
            return f"{len(changed)} videos have changed: {listed(changed)}"
        for name, tensor in self._layout().items():
            data = self._bytes_of(name, tensor, block)
            if data is None:
                return f"{name}.raw is truncated"
            if xxh3_64_hexdigest(data) != record.get("checksums", {}).get(name):
                return f"{name}.raw differs from its checksum"
        return None

    def _bytes_of(self, name: str, layout: Mapping[str, Any], block: int) -> np.ndarray | None:
        indices = self._videos_of(block)
        size, path = _bytes_per_video(layout), self._data_path(name)
        if not path.exists() or path.stat().st_size < indices.stop * size:
            return None
        return np.memmap(path, np.uint8, "r", indices.start * size, (len(indices) * size,))

    def _map_states(self, layout: Mapping[str, Any], encoded: int) -> CachedStates:
        states = {}
        for name, entry in layout.items():
            try:
                states[name] = _map_tensor(self._data_path(name), entry, len(self.videos))
            except (OSError, ValueError) as error:
                raise DmgalError(
                    f"The cache {self.folder} cannot be opened.",
                    received=f"{name}.raw: {error}",
                    expected="a readable file of its original length",
                    remedy="Fill the cache again, and let no other program change the folder.",
                ) from error
        records = [_read_json(self._record_path(block)) for block in range(self.num_blocks)]
        bad = tuple(index for record in records for index in record.get("bad", ()))
        size = sum(_bytes_per_video(entry) * len(self.videos) for entry in layout.values())
        return CachedStates(PrecomputedStates.from_tensors(states), bad, encoded, size)

    def _videos_of(self, block: int) -> range:
        return range(block * self.block_size, min((block + 1) * self.block_size, len(self.videos)))

    def _layout(self) -> dict[str, Any]:
        return self._read_key().get("tensors", {})

    def _total_bytes(self) -> int:
        return sum(_bytes_per_video(entry) * len(self.videos) for entry in self._layout().values())

    def _read_key(self) -> dict[str, Any]:
        return _read_json(self.folder / KEY)

    def _record_path(self, block: int) -> Path:
        return self.folder / "blocks" / f"{block:05}.json"

    def _data_path(self, name: str) -> Path:
        return self.folder / f"{name}.raw"

    def _has_records(self) -> bool:
        return (self.folder / "blocks").exists()

    def _clear(self, layout: Mapping[str, Any]) -> None:
        """Delete this cache's files only, in case the user named a wrong folder."""
        shutil.rmtree(self.folder / "blocks", ignore_errors=True)
        (self.folder / KEY).unlink(missing_ok=True)
        for name in layout:
            self._data_path(name).unlink(missing_ok=True)


def _bytes_per_video(layout: Mapping[str, Any]) -> int:
    return int(np.prod(layout["shape"], dtype=np.int64)) * getattr(torch, layout["dtype"]).itemsize


def _map_tensor(path: Path, layout: Mapping[str, Any], num_videos: int) -> Tensor:
    """Map a tensor ``(num_videos, ...)`` read-only, because the system counts writable mappings as used memory."""
    data = np.memmap(path, np.uint8, "r", shape=(_bytes_per_video(layout) * num_videos,))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        tensor = torch.from_numpy(data)
    return tensor.view(getattr(torch, layout["dtype"])).view(num_videos, *layout["shape"])


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object, or an empty dictionary if there is no valid one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _log(text: str) -> None:
    tqdm.write(printable(text), file=sys.stderr)
