"""States on disk: every video of a split is encoded once, by any number of processes, and mapped into memory.

    FOLDER/key.json            what shapes the states, and their names, types and shapes
    FOLDER/NAME.raw            one tensor of all videos, the first video first
    FOLDER/blocks/00012.json   of a block of videos that is done: which they were, and the checksums of its bytes

A block is what is encoded in one batch, so its bytes are the same whoever encodes it, and when: a build that was killed
goes on where it was. The record of a block appears, whole, after its bytes. Whoever opens a cache looks at every
checksum; what is damaged, or of videos that have changed, is encoded anew.
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

from ..backbones.video_state import VideoState
from ..errors import DmgalError
from .exclusive import exclusively
from .listing import listed, printable
from .recognizer import FewShotRecognizer
from .states.cache_key import differences, refuse_other
from .states.sides import check_states_can_be_kept, encode_sides
from .stores.store_blocks import checksum

KEY = "key.json"
FULL = (errno.ENOSPC, errno.EDQUOT)
BadOf = Callable[[], Sequence[int]]


@dataclass(frozen=True)
class Processes:
    """This process among those that encode together; ``wait`` returns when all of them have called it."""

    rank: int = 0
    count: int = 1
    wait: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class CachedStates:
    """What a cache holds.

    Attributes:
        states: of all videos, mapped into memory, for reading alone: who writes into them crashes the process.
        bad: places of videos that could not be read, whose states mean nothing.
        encoded: how many videos this process has encoded for it now.
        size: bytes on disk.
    """

    states: VideoState
    bad: tuple[int, ...]
    encoded: int
    size: int


@dataclass
class StateCache:
    """The states of the videos of one split.

    Args:
        folder: made where it is not there; of this cache alone.
        key: all that shapes the states but the videos, as JSON takes it, see `cache_key.describe`.
        videos: a text for each video that changes with it: its name, then its size and time of change.
        block_size: videos encoded at a time.
        half: keep float16. States are then not the exact ones, and predictions may differ.
    """

    folder: Path
    key: Mapping[str, Any]
    videos: Sequence[str]
    block_size: int = 32
    half: bool = False
    _files: dict[str, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        kept = {"kept_as": "float16, inexact" if self.half else "as computed", "block_size": self.block_size}
        self.key = json.loads(json.dumps({**self.key, **kept, "num_videos": len(self.videos)}))

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
        """Encode what is missing, and open all of it. All processes call it with the same arguments.

        Args:
            recognizer: of the key; it is put into evaluation mode.
            clips: ``(T, 3, H, W)`` of each video, in the order of ``videos``.
            num_workers: processes that read clips, for each process that encodes.
            device: where to encode.
            progress: whether to show bars and tell what was found.
            processes: this process among all that encode; None: it is alone.
            bad: gives the places of the videos that this process could not read so far.
            no_longer_bad: places of videos that are bad in the cache and can be read now; encoded anew.

        Raises:
            DmgalError: states that depend on the batch, or a full disk; what was encoded stays, and counts.
        """
        check_states_can_be_kept(recognizer.eval())
        processes = processes or Processes()
        self.folder.mkdir(parents=True, exist_ok=True)
        if processes.rank:
            processes.wait()  # until the first process holds the lock and has thrown away what is not to be used
            return self._fill(recognizer, clips, num_workers, device, False, processes, bad)
        with exclusively(self.folder / ".lock", lambda: _tell(f"waiting for another process in {self.folder}")):
            for reason in self._forget_unusable(no_longer_bad):
                _tell(f"{self.folder}: {reason}") if progress else None
            processes.wait()
            return self._fill(recognizer, clips, num_workers, device, progress, processes, bad)

    def open(self) -> CachedStates:
        """What the cache holds, encoding nothing.

        Raises:
            DmgalError: it is not whole, damaged, stale, or of another key; what differs is named.
        """
        stored = self._read_key()
        layout = stored.pop("tensors", {})
        refuse_other(f"The cache {self.folder}", stored, self.key)
        problems = [f"block {block}: {p}" for block in range(self.num_blocks) if (p := self._problem(block))]
        if problems:
            raise DmgalError(
                f"The cache {self.folder} cannot be used.",
                received=f"{len(problems)} of {self.num_blocks} blocks differ: {listed(problems)}",
                expected="every block whole, and its videos unchanged",
                remedy="fill it again: only these blocks are encoded anew",
            )
        return self._opened(layout, 0)

    @property
    def num_blocks(self) -> int:
        return -(-len(self.videos) // self.block_size)

    def missing(self) -> list[int]:
        """Blocks that have no record."""
        return [block for block in range(self.num_blocks) if not self._record_path(block).exists()]

    def _fill(
        self,
        recognizer: FewShotRecognizer,
        clips: Dataset[Tensor],
        num_workers: int,
        device: torch.device | str,
        progress: bool,
        processes: Processes,
        bad: BadOf,
    ) -> CachedStates:
        """Every process takes its share of the missing blocks, and opens all."""
        mine = self.missing()[processes.rank :: processes.count]
        processes.wait()  # until all have looked, before the first writes
        batches = [list(self._places(block)) for block in mine]
        pinned = torch.device(device).type == "cuda"
        loader = DataLoader(clips, batch_sampler=batches, num_workers=num_workers, pin_memory=pinned)
        bar = tqdm(loader, desc="encode", unit="batch", leave=False, disable=not progress)
        try:
            for block, batch in zip(mine, bar, strict=True):
                with torch.no_grad():
                    states = encode_sides(recognizer, batch.to(device, non_blocking=pinned)).to("cpu")
                self._write(block, self._as_kept(states), set(bad()))
        finally:
            for handle in self._files.values():
                os.close(handle)
            self._files.clear()
        processes.wait()  # until all have written
        opened = self._opened(self._layout(), sum(map(len, batches)))
        processes.wait()  # until all have opened, before the first gives the lock back
        return opened

    def _as_kept(self, states: VideoState) -> VideoState:
        if not self.half:
            return states
        halves = VideoState({name: t.half() if t.is_floating_point() else t for name, t in states.items()})
        large = [name for name, t in halves.items() if t.is_floating_point() and not t.isfinite().all()]
        if large:
            raise DmgalError(
                "States cannot be kept as float16.",
                received=f"numbers beyond 65504 in {listed(large)}",
                expected="smaller ones",
                remedy="keep them as computed",
            )
        return halves

    def _write(self, block: int, states: VideoState, bad: set[int]) -> None:
        try:
            self._write_block(block, states, bad)
        except OSError as error:
            full = error.errno in FULL
            raise DmgalError(
                "The disk is full." if full else "A cache cannot be written.",
                received=f"{self.folder}: {error.strerror}; {len(self.missing())} of {self.num_blocks} blocks missing",
                expected=f"{self._wanted_bytes() / 2**20:.0f} MiB in all",
                remedy="make room and run again, it goes on where it was; or keep the states elsewhere or nowhere",
            ) from error

    def _write_block(self, block: int, states: VideoState, bad: set[int]) -> None:
        if not self._files:
            self._make_files(states)
        checksums, places = {}, self._places(block)
        for name, tensor in states.items():
            data = tensor.contiguous().flatten().view(torch.uint8).numpy()
            checksums[name] = f"{checksum(data):016x}"
            offset, view = places.start * (len(data) // len(places)), memoryview(data)  # type: ignore[arg-type]
            while view:
                written = os.pwrite(self._files[name], view, offset)
                offset, view = offset + written, view[written:]
        record = {
            "videos": [self.videos[place] for place in places],
            "bad": sorted(bad.intersection(places)),
            "checksums": checksums,
        }
        _write_json(self._record_path(block), record)

    def _make_files(self, states: VideoState) -> None:
        """Every process does so: nothing that is there is changed."""
        layout = {n: {"dtype": str(t.dtype).removeprefix("torch."), "shape": [*t.shape[1:]]} for n, t in states.items()}
        if self._read_key().get("tensors") != layout:
            _write_json(self.folder / KEY, {**self.key, "tensors": layout})
        (self.folder / "blocks").mkdir(exist_ok=True)
        for name, tensor in states.items():
            handle = self._files[name] = os.open(self._data_path(name), os.O_RDWR | os.O_CREAT, 0o666)
            wanted = tensor[:1].nbytes * len(self.videos)
            if os.fstat(handle).st_size < wanted and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle, 0, wanted)  # a full disk is met now, not in the middle

    def _forget_unusable(self, no_longer_bad: Sequence[int]) -> list[str]:
        """Throw away what cannot be used, and say what it was."""
        stored = self._read_key()
        layout = stored.pop("tensors", None)
        if not stored and not self._has_records():
            return []
        other = differences(stored, self.key) if layout else ["no key"]
        if other:
            self._clear(layout or {})
            return [f"held other states ({', '.join(other)} differ), which are thrown away; encoding anew"]
        reasons = []
        for block in range(self.num_blocks):
            readable = [self.videos[place] for place in no_longer_bad if place in self._places(block)]
            outdated = f"{len(readable)} videos can be read now: {listed(readable)}" if readable else None
            if self._record_path(block).exists() and (problem := self._problem(block) or outdated):
                self._record_path(block).unlink()
                reasons.append(problem)
        return [f"{len(reasons)} blocks are encoded anew: {listed(reasons)}"] if reasons else []

    def _problem(self, block: int) -> str | None:
        """Why a block cannot be used."""
        record = _read_json(self._record_path(block))
        if not record:
            return "it is not there"
        videos = [self.videos[place] for place in self._places(block)]
        changed = [now for now, before in zip(videos, record.get("videos", ()), strict=False) if now != before]
        if changed or len(videos) != len(record.get("videos", ())):
            return f"{len(changed)} videos have changed: {listed(changed)}"
        for name, tensor in self._layout().items():
            data = self._bytes_of(name, tensor, block)
            if data is None:
                return f"{name}.raw is truncated"
            if f"{checksum(data):016x}" != record.get("checksums", {}).get(name):
                return f"{name}.raw differs from its checksum"
        return None

    def _bytes_of(self, name: str, layout: Mapping[str, Any], block: int) -> np.ndarray | None:
        places = self._places(block)
        size, path = _bytes_per_video(layout), self._data_path(name)
        if not path.exists() or path.stat().st_size < places.stop * size:
            return None
        return np.memmap(path, np.uint8, "r", places.start * size, (len(places) * size,))

    def _opened(self, layout: Mapping[str, Any], encoded: int) -> CachedStates:
        states = VideoState()
        for name, entry in layout.items():
            try:
                states[name] = _mapped(self._data_path(name), entry, len(self.videos))
            except (OSError, ValueError) as error:
                raise DmgalError(
                    f"The cache {self.folder} cannot be opened.",
                    received=f"{name}.raw: {error}",
                    expected="a readable file, as long as it was written",
                    remedy="let nothing else change the folder, and fill it again",
                ) from error
        records = [_read_json(self._record_path(block)) for block in range(self.num_blocks)]
        bad = tuple(place for record in records for place in record.get("bad", ()))
        size = sum(_bytes_per_video(entry) * len(self.videos) for entry in layout.values())
        return CachedStates(states, bad, encoded, size)

    def _places(self, block: int) -> range:
        return range(block * self.block_size, min((block + 1) * self.block_size, len(self.videos)))

    def _layout(self) -> dict[str, Any]:
        return self._read_key().get("tensors", {})

    def _wanted_bytes(self) -> int:
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
        """Of its own files only: a folder given by mistake loses nothing else."""
        shutil.rmtree(self.folder / "blocks", ignore_errors=True)
        (self.folder / KEY).unlink(missing_ok=True)
        for name in layout:
            self._data_path(name).unlink(missing_ok=True)


def _bytes_per_video(layout: Mapping[str, Any]) -> int:
    return int(np.prod(layout["shape"], dtype=np.int64)) * getattr(torch, layout["dtype"]).itemsize


def _mapped(path: Path, layout: Mapping[str, Any], num_videos: int) -> Tensor:
    """``(num_videos, ...)``, to be read only: what may be written, if only as a copy, is charged against memory."""
    data = np.memmap(path, np.uint8, "r", shape=(_bytes_per_video(layout) * num_videos,))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        tensor = torch.from_numpy(data)
    return tensor.view(getattr(torch, layout["dtype"])).view(num_videos, *layout["shape"])


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(content), encoding="utf-8")
    partial.replace(path)


def _read_json(path: Path) -> dict[str, Any]:
    """Nothing where there is no whole JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _tell(text: str) -> None:
    tqdm.write(printable(text), file=sys.stderr)
