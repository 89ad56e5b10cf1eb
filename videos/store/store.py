"""Readers of a store: frames that are decoded once and read many times.

    FOLDER/test/   fixed test clips of validation and test videos, uncompressed
    FOLDER/train/  all frames of training videos as JPEGs

Each part has one large file of frames, an index, and ``key.json`` with all settings that determine the content. The
index records each video's size, modification time and content hash, so that a stale store is refused. An interrupted
build can be resumed at any time. Videos that were only copied or touched are recognized by their content.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...files import listed
from ..catalog.catalog import VideoCatalog
from ..catalog.files import stamp
from ..decoding.base import VideoError
from ..decoding.video import ChooseFrames, DecoderName
from .blocks import BlockReader, checksum, latest, read_records
from .content import (
    REMEDY,
    DamagedBlockError,
    EvaluationClips,
    TrainingFrames,
    damage,
    read_key,
    refuse,
    refuse_other,
    unpack,
)


class StoredClips:
    """Fixed test clips of a catalog's videos, read from a store. Every read verifies the clip's checksum.

    Args:
        folder: of the store.
        catalog: the videos, all of which the store must contain unchanged.
        content: the expected kind of clip.

    Raises:
        DmgalError: the store does not exist, has other content or is stale. The message names the differences.
    """

    def __init__(self, folder: str | os.PathLike[str], catalog: VideoCatalog, content: EvaluationClips) -> None:
        self.content = content
        self._part = Path(folder) / content.name
        self._catalog = catalog
        self._blocks = _open_blocks(self._part, catalog, content.description())

    def read(self, video: int) -> Tensor:
        """Return a copy of a clip, uint8 ``(T, 3, size, size)``.

        Raises:
            VideoError: the video could not be read when the store was built.
            DmgalError: the store is damaged.
        """
        block = self._blocks.view(video).copy()
        if checksum(block) != self._blocks.checksum(video):
            _refuse_damaged(self._part, self._catalog.path(video), "the clip differs from its checksum")
        if not self._blocks.frames(video):
            raise VideoError(self._catalog.path(video), block.tobytes().decode("utf-8", "replace"))
        return torch.from_numpy(block).view(self.content.shape)


class StoredFrames:
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
        self._part = Path(folder) / TrainingFrames.name
        self._catalog = catalog
        key = read_key(self._part)
        jpeg_options = {name: key[name] for name in ("short_side", "quality") if name in key}
        self.content = TrainingFrames(**jpeg_options, decoder=decoder)
        self._blocks = _open_blocks(self._part, catalog, self.content.description())

    def read(self, video: int, choose: ChooseFrames, at_least: int = 1) -> Tensor:
        """Return the chosen frames, uint8 ``(T, 3, H, W)``, like `read_clip`.

        Raises:
            VideoError: the video, or enough of it, could not be read when the store was built.
            DmgalError: the store is damaged.
        """
        path = self._catalog.path(video)
        block = self._blocks.view(video)
        count = self._blocks.frames(video)
        if not count:
            raise VideoError(path, block.tobytes().decode("utf-8", "replace"))
        try:
            if count < at_least and (reason := damage(block, count)) is not None:
                raise VideoError(path, f"only {count} frames decode of {at_least} wanted; then {reason}")
            return unpack(block, count, choose(count))
        except DamagedBlockError as error:
            _refuse_damaged(self._part, path, str(error))


def _open_blocks(part: Path, catalog: VideoCatalog, description: dict[str, Any]) -> BlockReader:
    """Return a reader of the blocks of a catalog's videos, in the catalog's order."""
    refuse_other(part, read_key(part), description)
    records = read_records(part)
    positions = latest(records, catalog.videos)
    differences = list(_describe_differences(catalog, records, positions))
    if differences:
        refuse(
            f"The store {part} is stale.",
            f"{len(differences)} of {len(catalog)} videos differ: {listed(differences)}",
            "every video in the store, unchanged since it was built",
            REMEDY,
        )
    return BlockReader(part, records[positions])


def _describe_differences(
    catalog: VideoCatalog, records: NDArray[np.void], positions: NDArray[np.int64]
) -> Iterator[str]:
    for video, position in zip(catalog.videos, positions.tolist(), strict=True):
        if position < 0:
            yield f"{video} is not in it"
            continue
        now, size = stamp(os.path.join(catalog.root, video)), int(records[position]["source_bytes"])
        if now.size != size:
            yield f"{video} had {size} bytes and has {now.size}"
        elif now.time != records[position]["source_time"]:
            yield f"{video} was changed or copied since"


def _refuse_damaged(part: Path, video: Path, reason: str) -> NoReturn:
    refuse(
        f"The store {part} is damaged.",
        f"{video}: {reason}",
        "the bytes that were written",
        "Build it with --check, which rebuilds the damaged parts, and check the disk.",
    )
