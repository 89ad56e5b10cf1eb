"""Readers of a store: frames that are decoded once and read many times.

    FOLDER/test/   fixed test clips of validation and test videos, uncompressed
    FOLDER/train/  all frames of training videos as JPEGs

Each part has one file with the blocks of all videos, an index, and ``key.json`` with all settings that determine the
content. A line of the index is a checksum and a `Record` as JSON. It is written after its block has reached the disk,
so an interrupted build can be resumed at any time. A record contains its video's size, modification time and content
hash, so a stale store is refused, and videos that were only copied or touched are recognized.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from xxhash import xxh3_64_hexdigest, xxh3_64_intdigest

from ...errors import DmgalError, differences, refuse_differences
from ...files import listed, open_regular, read_mapping, reason
from ..catalog.catalog import VideoCatalog
from ..catalog.files import stamp
from ..decoding.base import VideoError
from ..decoding.video import ChooseFrames, DecoderName
from .content import Content, EvaluationClips, TrainingFrames, unpack

DATA, INDEX, KEY = "blocks.bin", "index.txt", "key.json"
LONGEST_LINE = 2**16
REMEDY = "Build it: run dmgal store with the options of this run. Only missing or changed videos are decoded."


class Record(NamedTuple):
    """Identity of a video (path, size, time and content hash), and its block.

    ``frames`` is 0 if the video cannot be read. ``reason`` is why the rest of it cannot be read, or an empty text.
    """

    video: str
    size: int
    time: int
    source: int
    offset: int
    length: int
    frames: int
    checksum: int
    reason: str

    def line(self) -> bytes:
        """Return a line of the index."""
        text = json.dumps(self).encode()
        return b"%s %s\n" % (xxh3_64_hexdigest(text).encode(), text)


def read_records(part: Path) -> dict[str, Record]:
    """Return the last valid record of each video. A record is invalid if its line or its block is incomplete.

    Raises:
        DmgalError: the index exists, but cannot be read.
    """
    records: dict[str, Record] = {}
    try:
        with open_regular(part / INDEX) as file:
            data_bytes = (part / DATA).stat().st_size
            while line := file.readline(LONGEST_LINE):
                if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                    break  # not an index from here on, perhaps gigabytes of zeros
                record = _parse(line.rstrip(b"\n"), data_bytes)
                if record is not None:
                    records[record.video] = record
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _unreadable(part / INDEX, error) from error
    return records


def _parse(line: bytes, data_bytes: int) -> Record | None:
    """Return the record of a line, or None if the line is damaged, incomplete or forged."""
    checksum, _, text = line.partition(b" ")
    if checksum != xxh3_64_hexdigest(text).encode():
        return None
    try:
        values = json.loads(text)
        record = Record(*values) if isinstance(values, list) else None
    except (ValueError, TypeError, RecursionError):
        return None
    if record is None or not isinstance(record.video, str) or not isinstance(record.reason, str):
        return None
    numbers = record[1:-1]
    if not all(isinstance(number, int) and -(2**63) <= number < 2**64 for number in numbers):
        return None
    is_inside = min(record.offset, record.length, record.frames) >= 0 and record.offset + record.length <= data_bytes
    return record if is_inside else None


def _unreadable(path: Path, error: OSError) -> DmgalError:
    return DmgalError(
        f"The store {path.parent} cannot be read.",
        received=f"{path.name}: {reason(error)}",
        expected="the files that dmgal store wrote",
        remedy="Copy the store again, or delete it and build it again.",
    )


def read_key(part: Path) -> dict[str, Any]:
    """Return the key of a part.

    Raises:
        DmgalError: there is no store, or its key cannot be read.
    """
    if not os.path.lexists(part / KEY):
        raise DmgalError(
            f"There is no store in {part}.",
            received=f"no {KEY}",
            expected="a folder created by dmgal store",
            remedy=REMEDY,
        )
    return read_mapping(
        part / KEY, "The key of this store cannot be read.", "Copy the store again, or delete it and build it again."
    )


def require_key(part: Path, wanted: dict[str, object]) -> None:
    """Raise a DmgalError that names all differences between the key of a part and the wanted key."""
    refuse_differences(
        differences(read_key(part), wanted),
        f"The store {part} holds something else.",
        "Use the options of this store, choose another folder, or delete this store and build it again.",
    )


class _StoredPart:
    """Part of a store, memory-mapped read-only. It can be pickled; each process maps the file itself."""

    def __init__(self, part: Path, catalog: VideoCatalog, content: Content) -> None:
        require_key(part, content.description())
        records = read_records(part)
        differences = list(_describe_differences(catalog, records))
        if differences:
            raise DmgalError(
                f"The store {part} is stale.",
                received=f"{len(differences)} of {len(catalog)} videos differ: {listed(differences)}",
                expected="every video in the store, unchanged since it was built",
                remedy=REMEDY,
            )
        self._part = part
        self._catalog = catalog
        self._records = [records[video] for video in catalog.videos]
        self._map: NDArray[np.uint8] | None = None

    def _record(self, video: int) -> Record:
        """Return the record of a video, or raise a VideoError if the video could not be read."""
        record = self._records[video]
        if not record.frames:
            raise VideoError(self._catalog.path(video), record.reason)
        return record

    def _block(self, video: int, record: Record) -> NDArray[np.uint8]:
        """Return a view of a video's block, uint8 ``(length,)``, without verification."""
        if self._map is None:
            try:
                self._map = np.memmap(self._part / DATA, np.uint8, "r").view(np.ndarray)
            except (OSError, ValueError) as error:  # a file that is missing, empty, or too large for the memory
                raise self._damaged(video) from error
        return self._map[record.offset : record.offset + record.length]

    def _damaged(self, video: int) -> DmgalError:
        return DmgalError(
            f"The store {self._part} is damaged.",
            received=f"frames of {self._catalog.path(video)} that differ from their checksum",
            expected="the bytes that were written",
            remedy="Build it with --check, which rebuilds the damaged parts, and check the disk.",
        )

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_map": None}


class StoredClips(_StoredPart):
    """Fixed test clips of a catalog's videos, read from a store. Every read verifies the clip's checksum.

    Args:
        folder: of the store.
        catalog: the videos, all of which the store must contain unchanged.
        content: the expected kind of clip.

    Raises:
        DmgalError: the store does not exist, has other content or is stale. The message names the differences.
    """

    def __init__(self, folder: str | os.PathLike[str], catalog: VideoCatalog, content: EvaluationClips) -> None:
        super().__init__(Path(folder) / content.name, catalog, content)
        self.content = content

    def read(self, video: int) -> Tensor:
        """Return a copy of a clip, uint8 ``(T, 3, size, size)``.

        Raises:
            VideoError: the video could not be read when the store was built.
            DmgalError: the store is damaged.
        """
        record = self._record(video)
        block = self._block(video, record).copy()
        if len(block) != math.prod(self.content.shape) or xxh3_64_intdigest(block.data) != record.checksum:
            raise self._damaged(video)
        return torch.from_numpy(block).view(self.content.shape)


class StoredFrames(_StoredPart):
    """Frames of a catalog's videos as JPEGs, read from a store. Every read verifies the checksum of each frame.

    Args:
        folder: of the store. The short side and quality of its JPEGs are read from its key.
        catalog: the videos, all of which the store must contain unchanged.
        decoder: the decoder that the store must have been built with.

    Raises:
        DmgalError: the store does not exist, was built with other versions or is stale. The message names the
            differences.
    """

    def __init__(self, folder: str | os.PathLike[str], catalog: VideoCatalog, decoder: DecoderName = "pyav") -> None:
        part = Path(folder) / TrainingFrames.name
        key = read_key(part)
        jpeg_options = {name: key[name] for name in ("short_side", "quality") if isinstance(key.get(name), int)}
        self.content = TrainingFrames(**jpeg_options, decoder=decoder)
        super().__init__(part, catalog, self.content)

    def read(self, video: int, choose: ChooseFrames, at_least: int = 1) -> Tensor:
        """Return the chosen frames, uint8 ``(T, 3, H, W)``, like `read_clip`.

        Raises:
            VideoError: the video, or enough of it, could not be read when the store was built.
            DmgalError: the store is damaged.
        """
        record = self._record(video)
        if record.frames < at_least and record.reason:
            reason = f"only {record.frames} frames decode of {at_least} wanted; then {record.reason}"
            raise VideoError(self._catalog.path(video), reason)
        frames = unpack(self._block(video, record), record.frames, choose(record.frames))
        if frames is None:
            raise self._damaged(video)
        return frames


def _describe_differences(catalog: VideoCatalog, records: dict[str, Record]) -> Iterator[str]:
    for video in catalog.videos:
        record, now = records.get(video), stamp(os.path.join(catalog.root, video))
        if record is None:
            yield f"{video} is not in it"
        elif now.size != record.size:
            yield f"{video} had {record.size} bytes and has {now.size}"
        elif now.time != record.time:
            yield f"{video} was changed or copied since"
