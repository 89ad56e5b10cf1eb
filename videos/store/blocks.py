"""Blocks of bytes in one append-only file, and an index of the complete blocks.

A block is valid once its record is in the index. The record is written after the block has reached the disk, so a kill
or a full disk does no harm at any time. The next writer truncates the data after the last complete record. A rewritten
block gets another record, and the last record of a video is the valid one.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

DATA, INDEX = "frames.bin", "index.bin"
FIELDS = ("video", "source_bytes", "source_time", "source_hash", "offset", "length", "frames", "checksum")
RECORD = np.dtype([(name, "<u8") for name in (*FIELDS, "record_checksum")])
ALIGNMENT = 64
"""Blocks start at multiples of this number of bytes, so that they can be viewed as 64-bit words."""

ROW = 256
"""Words per row (2 KB), the smallest unit whose position affects a checksum."""

Words = NDArray[np.uint64]


class Source(NamedTuple):
    """Identity of a video: size in bytes, modification time in nanoseconds, and content hash."""

    size: int
    time: int
    content: int


@dataclass(frozen=True)
class Block:
    """Data to store for a video. ``frames`` is 0 for a video that cannot be read."""

    video: int
    source: Source
    frames: int
    data: bytes


class _Row(NamedTuple):
    video: int
    source_size: int
    source_time: int
    source_content: int
    offset: int
    length: int
    frames: int
    checksum: int


def video_key(video: str) -> int:
    """Return a video's key in the index: a 64-bit hash of its path in the catalog."""
    return int.from_bytes(blake2b(video.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def checksum(data: bytes | memoryview | NDArray[np.uint8]) -> int:
    """Return the sum of the 64-bit words, with each row weighted by an odd number that depends on its index.

    It detects a wrong byte, a lost page, a truncated end and swapped rows, at about the speed of reading memory.
    """
    content = np.frombuffer(data, dtype=np.uint8)
    full_bytes = len(content) // (8 * ROW) * (8 * ROW)
    last = np.zeros(8 * ROW, np.uint8)
    last[: len(content) - full_bytes] = content[full_bytes:]
    rows = content[:full_bytes].view("<u8").reshape(-1, ROW).sum(axis=1)
    totals = np.append(rows, last.view("<u8").sum())
    return (int(np.einsum("r,r", totals, _odd_weights(len(totals)))) + len(content)) % 2**64


@lru_cache(maxsize=8)
def _odd_weights(count: int) -> Words:
    """Return pseudorandom weights after Steele's SplitMix64. They are odd, so that no changed bit is lost."""
    numbers: Words = np.arange(1, count + 1, dtype=np.uint64) * 0x9E3779B97F4A7C15
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return (numbers ^ (numbers >> np.uint64(27))) | np.uint64(1)


def read_records(folder: Path) -> NDArray[np.void]:
    """Return the valid records of an index in the order of writing, or no records if there is no index.

    A record is damaged if its checksum is wrong or its block exceeds the data. Records after a damaged one are dropped.
    """
    try:
        content = (folder / INDEX).read_bytes()
        data_bytes = (folder / DATA).stat().st_size
    except FileNotFoundError:
        return np.empty(0, RECORD)
    records = np.frombuffer(content[: len(content) // RECORD.itemsize * RECORD.itemsize], RECORD)
    is_valid = records["record_checksum"] == _record_checksums(records)
    is_valid &= records["offset"] + records["length"] <= data_bytes
    return records if is_valid.all() else records[: int(np.argmin(is_valid))]


def latest(records: NDArray[np.void], videos: Sequence[str]) -> NDArray[np.int64]:
    """Return the position of each video's last record, ``(V,)``, or -1 if it has none."""
    keys = np.fromiter(map(video_key, videos), np.uint64, len(videos))
    if not len(records):
        return np.full(len(keys), -1, np.int64)
    order = np.argsort(records["video"], kind="stable")
    sorted_keys = records["video"][order]
    positions = np.searchsorted(sorted_keys, keys, side="right") - 1  # the last of equal keys
    candidates = np.maximum(positions, 0)
    is_present = (positions >= 0) & (sorted_keys[candidates] == keys)
    return np.where(is_present, order[candidates], -1).astype(np.int64)


class BlockWriter:
    """Writer that appends blocks. Only one writer may exist at a time.

    The constructor truncates what a killed process left incomplete.

    Raises:
        OSError: the files cannot be created or truncated.
    """

    def __init__(self, folder: Path) -> None:
        self.records = read_records(folder)
        self._data = FileIO(folder / DATA, "a")
        self._index = FileIO(folder / INDEX, "a")
        ends = self.records["offset"] + self.records["length"]
        self._data_end = int(ends.max()) if len(ends) else 0
        self._index_end = len(self.records) * RECORD.itemsize
        self._truncate()

    def append(self, blocks: Iterable[Block]) -> None:
        """Write all the blocks or none of them.

        Raises:
            OSError: writing failed, for example on a full disk. Earlier blocks stay intact.
        """
        rows: list[_Row] = []
        data: list[bytes] = []
        end = self._data_end
        for block in blocks:
            gap = -end % ALIGNMENT
            data += [bytes(gap), block.data]
            offset, length = end + gap, len(block.data)
            rows.append(_Row(block.video, *block.source, offset, length, block.frames, checksum(block.data)))
            end = offset + length
        self._write(b"".join(data), rows)

    def retime(self, places: Sequence[int], sources: Sequence[Source]) -> None:
        """Write records with the current sources of videos that were touched or copied but have the same content."""
        rows = []
        for position, source in zip(places, sources, strict=True):
            old = self.records[position]
            unchanged = (int(old[name]) for name in ("offset", "length", "frames", "checksum"))
            rows.append(_Row(int(old["video"]), *source, *unchanged))
        self._write(b"", rows)

    def _write(self, data: bytes, rows: Sequence[_Row]) -> None:
        records = np.zeros(len(rows), RECORD)
        for position, row in enumerate(rows):
            records[position] = (*row, 0)
        records["record_checksum"] = _record_checksums(records)
        try:
            _write_all(self._data, data)
            os.fsync(self._data.fileno())
            _write_all(self._index, records.tobytes())
        except BaseException:
            self._truncate()
            raise
        self._data_end += len(data)
        self._index_end += records.nbytes

    def _truncate(self) -> None:
        self._index.truncate(self._index_end)
        self._data.truncate(self._data_end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._data, self._index:
            os.fsync(self._index.fileno())


class BlockReader:
    """Reader of the blocks of some videos, by their position in ``records``, through a memory map.

    It can be pickled. Each process maps the file itself.

    Args:
        folder: of the blocks.
        records: the last record of each video, ``(V,)``.
    """

    def __init__(self, folder: Path, records: NDArray[np.void]) -> None:
        self._folder = folder
        self._rows = np.stack([records[name] for name in ("offset", "length", "frames", "checksum")], 1)  # (V, 4)
        self._map: NDArray[np.uint8] | None = None

    def frames(self, place: int) -> int:
        """Return the number of frames in a block, or 0 if the video could not be read."""
        return int(self._rows[place, 2])

    def view(self, place: int) -> NDArray[np.uint8]:
        """Return a read-only view of a block, uint8 ``(length,)``, without verification."""
        if self._map is None:
            self._map = self._map_file()
        offset, length = self._rows[place, :2].tolist()
        return self._map[offset : offset + length]

    def checksum(self, place: int) -> int:
        """Return the recorded checksum of a block."""
        return int(self._rows[place, 3])

    def _map_file(self) -> NDArray[np.uint8]:
        with open(self._folder / DATA, "rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_map": None}


def _record_checksums(records: NDArray[np.void]) -> Words:
    words = records.view("<u8").reshape(-1, len(FIELDS) + 1)[:, : len(FIELDS)]
    weights = 2 * np.arange(len(FIELDS), dtype=np.uint64) + 0x9E3779B97F4A7C15  # odd, so that no changed bit is lost
    return (words * weights).sum(1, dtype=np.uint64) + np.uint64(1)  # plus one, so that zeros are not a valid record


def _write_all(file: FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
