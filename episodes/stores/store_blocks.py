"""Blocks of bytes in one large file that only grows, and an index that says what is whole.

A block counts once its record stands in the index, and the record is written after the block has reached the disk. So a
process may be killed, or the disk be full, at any moment: what follows the last whole record is cut off by whoever
writes next. A block that is written anew gets a later record; the last record of a video is the one that counts.
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
"""Blocks start at multiples of it, so that they may be looked at as 64-bit words."""

ROW = 256
"""Words of a row, the smallest part whose place a checksum knows; 2 KB."""

Words = NDArray[np.uint64]


class Source(NamedTuple):
    """What tells that a video is still the one it was: bytes, nanoseconds of the last change, hash of the content."""

    size: int
    time: int
    content: int


@dataclass(frozen=True)
class Block:
    """What there is to store of a video; ``frames`` is 0 for one that cannot be read."""

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
    """A video's name in the index: 64 bits of its path in the catalog."""
    return int.from_bytes(blake2b(video.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def checksum(data: bytes | memoryview | NDArray[np.uint8]) -> int:
    """Sum of the 64-bit words, each row's times an odd number of its place: about as fast as memory is read.

    A wrong byte, a lost page, a torn end, or rows that have changed places change it.
    """
    content = np.frombuffer(data, dtype=np.uint8)
    whole = len(content) // (8 * ROW) * (8 * ROW)
    last = np.zeros(8 * ROW, np.uint8)
    last[: len(content) - whole] = content[whole:]
    rows = content[:whole].view("<u8").reshape(-1, ROW).sum(axis=1)
    totals = np.append(rows, last.view("<u8").sum())
    return (int(np.einsum("r,r", totals, _odd(len(totals)))) + len(content)) % 2**64


@lru_cache(maxsize=8)
def _odd(count: int) -> Words:
    """Scattered numbers, as of Steele's SplitMix64; odd, so that no changed bit is lost."""
    numbers: Words = np.arange(1, count + 1, dtype=np.uint64) * 0x9E3779B97F4A7C15
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return (numbers ^ (numbers >> np.uint64(27))) | np.uint64(1)


def read_records(folder: Path) -> NDArray[np.void]:
    """The whole records of an index, in the order in which they were written; none where there is no index.

    Those behind the first damaged one are left out, and those whose block lies beyond the end of the data.
    """
    try:
        content = (folder / INDEX).read_bytes()
        data_bytes = (folder / DATA).stat().st_size
    except FileNotFoundError:
        return np.empty(0, RECORD)
    records = np.frombuffer(content[: len(content) // RECORD.itemsize * RECORD.itemsize], RECORD)
    sound = records["record_checksum"] == _record_checksums(records)
    sound &= records["offset"] + records["length"] <= data_bytes
    return records[: len(records) if sound.all() else int(np.argmin(sound))]


def latest(records: NDArray[np.void], videos: Sequence[str]) -> NDArray[np.int64]:
    """Place of each video's last record, ``(V,)``; -1 where there is none."""
    keys = np.fromiter(map(video_key, videos), np.uint64, len(videos))
    order = np.argsort(records["video"], kind="stable")
    known = records["video"][order]
    places = np.searchsorted(known, keys, side="right") - 1  # the last of equal ones
    found = (places >= 0) & (known[np.maximum(places, 0)] == keys) if len(known) else np.zeros(len(keys), bool)
    return np.where(found, order[np.maximum(places, 0)] if len(known) else 0, -1).astype(np.int64)


class BlockWriter:
    """Appends blocks; nobody else may write at the same time. Made, it cuts off what a killed process left half.

    Raises:
        OSError: the files cannot be made or cut.
    """

    def __init__(self, folder: Path) -> None:
        self.records = read_records(folder)
        self._data = FileIO(folder / DATA, "a")
        self._index = FileIO(folder / INDEX, "a")
        ends = self.records["offset"] + self.records["length"]
        self._data_end = int(ends.max()) if len(ends) else 0
        self._index_end = len(self.records) * RECORD.itemsize
        self._cut()

    def append(self, blocks: Iterable[Block]) -> None:
        """Write blocks whole or not at all.

        Raises:
            OSError: the disk is full or gone; the blocks before these stay.
        """
        rows, data, end = [], [], self._data_end
        for block in blocks:
            gap = -end % ALIGNMENT
            data += [bytes(gap), block.data]
            place = end + gap, len(block.data)
            rows.append(_Row(block.video, *block.source, *place, block.frames, checksum(block.data)))
            end = sum(place)
        self._write(b"".join(data), rows)

    def retime(self, places: Sequence[int], sources: Sequence[Source]) -> None:
        """New records for blocks whose videos were touched or copied, but show the same."""
        rows = []
        for place, source in zip(places, sources, strict=True):
            old = self.records[place]
            kept = (int(old[name]) for name in ("offset", "length", "frames", "checksum"))
            rows.append(_Row(int(old["video"]), *source, *kept))
        self._write(b"", rows)

    def _write(self, data: bytes, rows: Sequence[_Row]) -> None:
        records = np.zeros(len(rows), RECORD)
        for place, row in enumerate(rows):
            records[place] = (*row, 0)
        records["record_checksum"] = _record_checksums(records)
        try:
            _write_all(self._data, data)
            os.fsync(self._data.fileno())
            _write_all(self._index, records.tobytes())
        except BaseException:
            self._cut()
            raise
        self._data_end += len(data)
        self._index_end += records.nbytes

    def _cut(self) -> None:
        self._index.truncate(self._index_end)
        self._data.truncate(self._data_end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._data, self._index:
            os.fsync(self._index.fileno())


class BlockReader:
    """The blocks of some videos, by their place in the list that was given; read through a memory map.

    Args:
        folder: where the blocks lie.
        records: the last record of each video, ``(V,)``.

    It can be handed to other processes: each maps the file for itself.
    """

    def __init__(self, folder: Path, records: NDArray[np.void]) -> None:
        self._folder = folder
        self._rows = np.stack([records[name] for name in ("offset", "length", "frames", "checksum")], 1)  # (V, 4)
        self._map: NDArray[np.uint8] | None = None

    def frames(self, place: int) -> int:
        """How many frames a block holds; 0 where the video could not be read."""
        return int(self._rows[place, 2])

    def view(self, place: int) -> NDArray[np.uint8]:
        """A block as it lies in the file, ``(length,)`` uint8, read-only and unchecked."""
        if self._map is None:
            self._map = self._mapped()
        offset, length = self._rows[place, :2].tolist()
        return self._map[offset : offset + length]

    def checksum(self, place: int) -> int:
        """What the block's checksum was when it was written."""
        return int(self._rows[place, 3])

    def _mapped(self) -> NDArray[np.uint8]:
        with open(self._folder / DATA, "rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_map": None}


def _record_checksums(records: NDArray[np.void]) -> Words:
    words = records.view("<u8").reshape(-1, len(FIELDS) + 1)[:, : len(FIELDS)]  # (records, fields)
    weights = 2 * np.arange(len(FIELDS), dtype=np.uint64) + 0x9E3779B97F4A7C15  # odd, so that no changed bit is lost
    return (words * weights).sum(1, dtype=np.uint64) + np.uint64(1)  # one more, so that zeros are no record


def _write_all(file: FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
