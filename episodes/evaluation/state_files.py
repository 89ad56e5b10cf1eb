"""Files of a cache of video states, written block by block.

    FOLDER/key.json            everything that shapes the states, and the tensors' names, types and shapes
    FOLDER/NAME.npy            one tensor of all videos, in the order of the videos; bfloat16 as int16
    FOLDER/blocks/00012.json   record of one finished block: its videos and the checksums of its rows

A block's record is written atomically after its rows, so a build that was killed resumes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import xxhash
from numpy.lib import format as npy
from torch import Tensor

from ...errors import DmgalError
from ...files import delete, listed, open_regular, read_json, reason, write_text
from .states import PrecomputedStates

KEY = "key.json"


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

    def create(self, key: Mapping[str, object], states: Mapping[str, Tensor]) -> None:
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


def _is_tensor(name: str, entry: object) -> bool:
    """Return True for a name that is a file name, and an entry of a dtype and a shape."""
    if not re.fullmatch(r"\w[\w.]*", name) or not isinstance(entry, list) or len(entry) != 2:
        return False
    dtype, shape = entry
    is_shape = isinstance(shape, list) and all(isinstance(size, int) and size >= 0 for size in shape)
    return is_shape and isinstance(dtype, str) and isinstance(getattr(torch, dtype, None), torch.dtype)


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.parent.mkdir(exist_ok=True)
    write_text(path, json.dumps(content))


def _read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object, or an empty dictionary if it cannot be read."""
    try:
        return read_json(path)
    except OSError:
        return {}
