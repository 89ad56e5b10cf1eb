"""A store: frames decoded once, read ever after; refused as soon as it is not what decoding would give.

    FOLDER/test/   the fixed test clips of validation and test videos, as they are
    FOLDER/train/  all frames of training videos as JPEGs

Each holds one large file of frames, an index, and ``key.json``: everything but the videos that shapes the content. The
index knows each video's size, time of change and content. A build may be interrupted at any moment and goes on where it
was; videos that were only copied or touched are recognized by their content.
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

from .catalog import VideoCatalog
from .catalogs.video_identity import stamp
from .listing import listed
from .stores.store_blocks import BlockReader, checksum, latest, read_records
from .stores.store_build import PartReport, build_store
from .stores.store_content import DamagedBlockError, EvaluationClips, TrainingFrames, damage, unpack
from .stores.store_key import REMEDY, read_key, refuse, refuse_other
from .video import ChooseFrames, DecoderName, VideoError

__all__ = ["EvaluationClips", "PartReport", "StoredClips", "StoredFrames", "TrainingFrames", "build_store"]


class StoredClips:
    """The fixed test clips of a catalog's videos, read from a store; its checksum is looked at every time.

    Args:
        folder: of the store.
        catalog: the videos, all of which the store must hold unchanged.
        content: what a clip must be.

    Raises:
        DmgalError: no store, one of other content, or a stale one; what differs is named.
    """

    def __init__(self, folder: str | os.PathLike[str], catalog: VideoCatalog, content: EvaluationClips) -> None:
        self.content = content
        self._part = Path(folder) / content.name
        self._catalog = catalog
        self._blocks = _opened(self._part, catalog, content.description())

    def read(self, video: int) -> Tensor:
        """Clip ``(T, 3, size, size)`` uint8, the caller's own.

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
    """The frames of a catalog's videos as JPEGs, read from a store; a checksum is looked at for every frame.

    Args:
        folder: of the store. The short side and quality of its JPEGs are the store's own choice, and are taken from it.
        catalog: the videos, all of which the store must hold unchanged.
        decoder: what must have decoded them.

    Raises:
        DmgalError: no store, one made by other versions, or a stale one; what differs is named.
    """

    def __init__(self, folder: str | os.PathLike[str], catalog: VideoCatalog, decoder: DecoderName = "pyav") -> None:
        self._part = Path(folder) / TrainingFrames.name
        self._catalog = catalog
        own = {name: value for name, value in read_key(self._part).items() if name in ("short_side", "quality")}
        self.content = TrainingFrames(**own, decoder=decoder)
        self._blocks = _opened(self._part, catalog, self.content.description())

    def read(self, video: int, choose: ChooseFrames, at_least: int = 1) -> Tensor:
        """The chosen frames, uint8 ``(T, 3, H, W)``; see `read_clip`, of which this takes the place.

        Raises:
            VideoError: the video could not be read when the store was built, or too little of it.
            DmgalError: the store is damaged.
        """
        path, block, count = self._catalog.path(video), self._blocks.view(video), self._blocks.frames(video)
        if not count:
            raise VideoError(path, block.tobytes().decode("utf-8", "replace"))
        try:
            if count < at_least and (reason := damage(block, count)) is not None:
                raise VideoError(path, f"only {count} frames decode of {at_least} wanted; then {reason}")
            return unpack(block, count, choose(count))
        except DamagedBlockError as error:
            _refuse_damaged(self._part, path, str(error))


def _opened(part: Path, catalog: VideoCatalog, description: dict[str, Any]) -> BlockReader:
    """The blocks of a catalog's videos, in its order."""
    refuse_other(part, read_key(part), description)
    records = read_records(part)
    places = latest(records, catalog.videos)
    stale = list(_differences(catalog, records, places))
    if stale:
        refuse(
            f"the store {part} is stale",
            f"{len(stale)} of {len(catalog)} videos differ: {listed(stale)}",
            "every video in the store, and unchanged since",
            REMEDY,
        )
    return BlockReader(part, records[places])


def _differences(catalog: VideoCatalog, records: NDArray[np.void], places: NDArray[np.int64]) -> Iterator[str]:
    for video, place in zip(catalog.videos, places.tolist(), strict=True):
        if place < 0:
            yield f"{video} is not in it"
            continue
        now, size = stamp(os.path.join(catalog.root, video)), int(records[place]["source_bytes"])
        if now.size != size:
            yield f"{video} had {size} bytes and has {now.size}"
        elif now.time != records[place]["source_time"]:
            yield f"{video} was changed or copied since"


def _refuse_damaged(part: Path, video: Path, reason: str) -> NoReturn:
    refuse(
        f"the store {part} is damaged",
        f"{video}: {reason}",
        "the bytes that were written",
        "build it with --check, which makes anew what is damaged; look after the disk",
    )
