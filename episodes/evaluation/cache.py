"""Video states on disk: any number of processes encode each video of a split once, then map the states into memory.

    FOLDER/key.json            everything that shapes the states, and the tensors' names, types and shapes
    FOLDER/NAME.npy            one tensor of all videos, in the order of the videos; bfloat16 as int16
    FOLDER/blocks/00012.json   record of one finished block: its videos and the checksums of its rows

A block is encoded in one batch, so its bytes do not depend on the process or the time. A block's record is written
atomically after its rows, so a build that was killed resumes. Every checksum is verified when a cache is opened;
damaged blocks and blocks of changed videos are encoded again.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import xxhash
from numpy.lib import format as npy
from torch import Tensor
from torch.utils.data import Dataset

from ...errors import DmgalError, differences, refuse_differences
from ...files import delete, exclusively, listed, open_regular, printable, read_json, reason, write_text
from ...loader import Loader
from ...progress import progress_bar
from ..recognizer import FewShotRecognizer
from .states import PrecomputedStates, check_states_can_be_kept, precompute_states

_LOG = logging.getLogger(__name__)
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
    """

    states: PrecomputedStates
    bad: tuple[int, ...]
    encoded: int

    @property
    def size(self) -> int:
        """Bytes of all states."""
        return sum(state.nbytes for state in self.states.tensors().values())


class StateFiles:
    """Storage of the tensors of all videos in blocks. The key is stored, and compared by the caller.

    Args:
        folder: folder of these files only.
        videos: one text per video that changes with it: name, size and modification time.
        block_size: videos per block.
    """

    def __init__(self, folder: Path, videos: Sequence[str], block_size: int) -> None:
        self.folder = folder
        self.videos = videos
        self.blocks = [
            range(start, min(start + block_size, len(videos))) for start in range(0, len(videos), block_size)
        ]

    def key(self) -> dict[str, Any]:
        """Return the stored key, or an empty dictionary."""
        key = _read_json(self.folder / KEY)
        key.pop("tensors", None)
        return key

    def missing(self) -> list[int]:
        """Return the blocks that have no record."""
        return [block for block in range(len(self.blocks)) if not self._record(block).exists()]

    def create(self, key: Mapping[str, Any], states: Mapping[str, Tensor]) -> None:
        """Create the files for states like those of one block.

        Every process that writes calls this, in any order. They write the same bytes, and existing rows do not change.
        """
        layout = {name: [str(state.dtype).removeprefix("torch."), [*state.shape[1:]]] for name, state in states.items()}
        if self._layout() != layout:
            _write_json(self.folder / KEY, {**key, "tensors": layout})
        (self.folder / "blocks").mkdir(exist_ok=True)
        for name, state in states.items():
            rows = _to_numpy(state)
            header = {"descr": rows.dtype.str, "fortran_order": False, "shape": (len(self.videos), *rows.shape[1:])}
            with open(os.open(self._data(name), os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
                npy.write_array_header_1_0(file, header)
                size = file.tell() + len(self.videos) * rows[:1].nbytes
                if os.fstat(file.fileno()).st_size < size:
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(file.fileno(), 0, size)  # fails now if the disk is full, not in the middle
                    else:
                        file.truncate(size)

    def write(self, block: int, states: Mapping[str, Tensor], bad: set[int]) -> None:
        """Write the states of a block, then its record."""
        indices, checksums = self.blocks[block], {}
        for name, state in states.items():
            rows = _to_numpy(state).data.cast("B")
            with self._data(name).open("r+b") as file:
                _seek_row(file, indices.start)
                file.write(rows)
            checksums[name] = xxhash.xxh3_64_hexdigest(rows)
        videos = [self.videos[index] for index in indices]
        record = {"videos": videos, "bad": sorted(bad.intersection(indices)), "checksums": checksums}
        _write_json(self._record(block), record)

    def problem(self, block: int) -> str | None:
        """Return the reason why a block cannot be used, or None."""
        record, indices, layout = self._read_record(block), self.blocks[block], self._layout()
        if not record or not layout:
            return "it has no record" if not record else f"{KEY} names no tensors"
        videos = [self.videos[index] for index in indices]
        changed = [now for now, before in zip(videos, record["videos"], strict=False) if now != before]
        if changed or len(videos) != len(record["videos"]):
            return f"{len(changed)} videos have changed: {listed(changed)}"
        for name in layout:
            try:
                with open_regular(self._data(name)) as file:
                    size = len(indices) * _seek_row(file, indices.start)
                    rows = file.read(size) if size <= os.fstat(file.fileno()).st_size else b""
            except (OSError, ValueError, TypeError, OverflowError) as error:
                return f"{name}.npy cannot be read: {reason(error)}"
            if len(rows) < size:
                return f"{name}.npy is truncated"
            if xxhash.xxh3_64_hexdigest(rows) != record["checksums"].get(name):
                return f"{name}.npy differs from its checksum"
        return None

    def open(self) -> tuple[PrecomputedStates, tuple[int, ...]]:
        """Map the states of all videos into memory, and return them with the indices of the bad videos."""
        states = {}
        for name, (dtype, shape) in self._layout().items():
            try:
                open_regular(self._data(name)).close()
                data = npy.open_memmap(self._data(name), mode="r")  # the system counts writable ones as used memory
                if data.shape != (len(self.videos), *shape):
                    raise ValueError(f"an array of shape {data.shape}")
            except (OSError, ValueError) as error:
                raise DmgalError(
                    f"The cache {self.folder} cannot be opened.",
                    received=f"{name}.npy: {reason(error)}",
                    expected="a readable file of its original length",
                    remedy="Fill the cache again, and let no other program change the folder.",
                ) from error
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The given NumPy array is not writable")
                states[name] = torch.from_numpy(data).view(getattr(torch, dtype))
        records = map(self._read_record, range(len(self.blocks)))
        return PrecomputedStates.from_tensors(states), tuple(i for record in records for i in record.get("bad", ()))

    def forget(self, block: int) -> None:
        """Delete the record of a block, so that it is encoded again."""
        self._record(block).unlink()

    def clear(self) -> None:
        """Delete these files only, in case the user named a wrong folder."""
        for name in self._layout():
            delete(self._data(name))
        shutil.rmtree(self.folder / "blocks", ignore_errors=True)
        delete(self.folder / KEY)

    def _layout(self) -> dict[str, Any]:
        """Return dtype and shape of a video's tensors by name, or an empty dictionary if the key has no valid ones."""
        layout = _read_json(self.folder / KEY).get("tensors")
        return layout if isinstance(layout, dict) and all(map(_is_tensor, layout, layout.values())) else {}

    def _read_record(self, block: int) -> dict[str, Any]:
        """Return the record of a block, or an empty dictionary if there is no valid one."""
        record = _read_json(self._record(block))
        videos, bad, checksums = (record.get(name) for name in ("videos", "bad", "checksums"))
        is_valid = isinstance(videos, list) and isinstance(bad, list) and isinstance(checksums, dict)
        return record if is_valid and all(index in self.blocks[block] for index in bad or ()) else {}

    def _record(self, block: int) -> Path:
        return self.folder / "blocks" / f"{block:05}.json"

    def _data(self, name: str) -> Path:
        return self.folder / f"{name}.npy"


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
        self, folder: Path, key: Mapping[str, Any], videos: Sequence[str], block_size: int = 32, half: bool = False
    ) -> None:
        storage = {"kept_as": "float16, inexact" if half else "as computed", "block_size": block_size}
        self.key: dict[str, Any] = json.loads(json.dumps({**key, **storage, "num_videos": len(videos)}))
        self.folder, self.half = folder, half
        self.files = StateFiles(folder, videos, block_size)

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
        clips: Dataset[Tensor],
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
                states = precompute_states(recognizer, batch.to(device, non_blocking=pinned)).to("cpu").tensors()
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


def _to_numpy(state: Tensor) -> np.ndarray:
    state = state.contiguous()
    return (state.view(torch.int16) if state.dtype == torch.bfloat16 else state).numpy()  # numpy has no bfloat16


def _seek_row(file: BinaryIO, index: int) -> int:
    """Move to a row of a .npy file, and return the size of a row in bytes."""
    file.seek(0)
    npy.read_magic(file)
    shape, _, dtype = npy.read_array_header_1_0(file)
    size = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    file.seek(index * size, os.SEEK_CUR)
    return size


def _is_tensor(name: str, entry: Any) -> bool:
    """Return True for a name that is a file name, and an entry of a dtype and a shape."""
    if not re.fullmatch(r"\w[\w.]*", name) or not isinstance(entry, list) or len(entry) != 2:
        return False
    dtype, shape = entry
    is_shape = isinstance(shape, list) and all(isinstance(size, int) and size >= 0 for size in shape)
    return is_shape and isinstance(dtype, str) and isinstance(getattr(torch, dtype, None), torch.dtype)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    write_text(path, json.dumps(content))


def _read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object, or an empty dictionary if it cannot be read."""
    try:
        return read_json(path)
    except OSError:
        return {}
