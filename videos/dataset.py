"""Clips of a catalog's videos: where to read them, a reader, and a dataset of the fixed test clips.

All random choices for a clip come from a generator seeded by the `FrameSampler`, the episode and the clip's position in
it. Results therefore depend neither on the number of workers nor on the order of reading.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DmgalError
from .bad_videos import BadVideos, OnBadVideo
from .catalog.catalog import VideoCatalog
from .catalog.files import content_hash
from .decoding.clip import FrameSampler, TestTransform, height_and_width
from .decoding.in_memory import VideoInMemory
from .decoding.video import ChooseFrames, DecoderName, read_clip
from .store.content import EvaluationClips
from .store.store import StoredClips, StoredFrames

CACHE_BYTES = 2**30  # enough for a small dataset


@dataclass(frozen=True)
class ClipSource:
    """The videos that clips are made of, and the way to read them.

    Args:
        catalog: the videos.
        decoder: library that decodes video files, or the one that the store was built with.
        store: folder of a store (see `build_store`). Test clips from a store are bit-identical to decoded ones.
            Training frames are JPEGs whose short side is at most that of the store.
        cache_bytes: size of a cache of decoded videos in memory; 0 disables it. Full-size uint8 videos are cached in
            the order of their first read, until one does not fit. Then the cache stays as it is. Each worker process
            has its own cache.
        on_bad_video: "error" raises a `VideoError` for a video that cannot be read. "skip" continues without it.
        in_memory: videos of the catalog that are in memory, by index. They have no files.
    """

    catalog: VideoCatalog
    decoder: DecoderName = "pyav"
    store: str | os.PathLike[str] | None = None
    cache_bytes: int = 0
    on_bad_video: OnBadVideo = "error"
    in_memory: Mapping[int, VideoInMemory] = field(default_factory=dict)

    def video(self, index: int) -> Path | VideoInMemory:
        """Return what `read_clip` reads: the path of a video, or the video itself if it is in memory."""
        return self.in_memory[index] if index in self.in_memory else self.catalog.path(index)

    def content_hash(self, index: int) -> int:
        """Return a 64-bit hash of a video's content: of its file, or of what is in memory."""
        video = self.video(index)
        return content_hash(video) if isinstance(video, Path) else video.content_hash()


class ClipReader:
    """Reader of a source's videos.

    Args:
        source: the videos.
        frames: the choice and transform of their frames. A damaged video is used only if at least as many of its
            frames decode as a clip has.

    Raises:
        DmgalError: the store does not exist, has other content or is stale.
    """

    def __init__(self, source: ClipSource, frames: FrameSampler) -> None:
        self.catalog = source.catalog
        self.bad_videos = BadVideos(source.catalog, source.on_bad_video)
        self._source = source
        self._frames = frames
        self._stored_clips = _open_stored_clips(source, frames) if frames.seed is None else None
        self._stored_frames = _open_stored_frames(source, frames) if frames.seed is not None else None
        self._free_bytes = source.cache_bytes
        self._cache: dict[int, Tensor] = {}

    def clip(self, video: int, *draw: int | str) -> Tensor:
        """Return a clip of a video, uint8 ``(T, 3, *size)``.

        Args:
            video: its index in the catalog.
            draw: see `FrameSampler.clip`.

        Raises:
            VideoError: the video cannot be read.
        """
        if self._stored_clips is not None:
            return self._stored_clips.read(video)
        return self._frames.clip(partial(self.read, video), *draw)

    def read(self, video: int, choose: ChooseFrames) -> Tensor:
        """Return the chosen frames of a video, uint8 ``(T, 3, H, W)``.

        Raises:
            VideoError: the video cannot be read.
        """
        if self._free_bytes > 0 and video not in self._cache:
            frames = self._read(video, range)
            self._free_bytes -= frames.nbytes
            if self._free_bytes < 0:
                return frames[list(choose(len(frames)))]
            self._cache[video] = frames
        if video in self._cache:
            return self._cache[video][list(choose(len(self._cache[video])))]
        return self._read(video, choose)

    def _read(self, video: int, choose: ChooseFrames) -> Tensor:
        if self._stored_frames is not None:
            return self._stored_frames.read(video, choose, self._frames.num_frames)
        return read_clip(self._source.video(video), choose, self._frames.num_frames, self._source.decoder)


class VideoDataset(Dataset[Tensor]):
    """Dataset of one clip ``(T, 3, *size)`` for each video of a source, for encoding every video once.

    Args:
        source: the videos. If bad videos are skipped, their clips are black, and ``bad_videos.met`` records them.
            Exclude such clips from further use (see `without_bad`).
        frames: without a seed, because test clips are fixed.

    Raises:
        DmgalError: the store does not exist, has other content or is stale.
        VideoError: on access to a video that cannot be read. The message names the video.
    """

    def __init__(self, source: ClipSource, frames: FrameSampler) -> None:
        self.catalog = source.catalog
        self.frames = frames
        self._reader = ClipReader(source, frames)
        self.bad_videos = self._reader.bad_videos

    def __len__(self) -> int:
        return len(self.catalog)

    def __getitem__(self, video: int) -> Tensor:
        if not 0 <= video < len(self):
            raise IndexError(f"video {video} of {len(self)}")
        clip = self.bad_videos.clip_or_none(video, self._reader.clip)
        if clip is None:
            return self.frames.transform(torch.zeros(self.frames.num_frames, 3, 64, 64, dtype=torch.uint8))
        return clip


def _open_stored_clips(source: ClipSource, frames: FrameSampler) -> StoredClips | None:
    if source.store is None:
        return None
    if not isinstance(frames.transform, TestTransform):
        raise DmgalError(
            f"Test clips cannot be read from the store {os.fspath(source.store)}.",
            received=f"the transform {frames.transform!r}",
            expected="a TestTransform, because stored clips are transformed with one",
            remedy="Use a TestTransform or no store.",
        )
    content = EvaluationClips(frames.num_frames, frames.transform, source.decoder)
    return StoredClips(source.store, source.catalog, content)


def _open_stored_frames(source: ClipSource, frames: FrameSampler) -> StoredFrames | None:
    if source.store is None:
        return None
    stored = StoredFrames(source.store, source.catalog, source.decoder)
    size = max(height_and_width(getattr(frames.transform, "size", 0)))
    if stored.content.short_side < size:
        raise DmgalError(
            f"The training frames of the store {os.fspath(source.store)} are too small.",
            received=f"a short side of {stored.content.short_side} pixels",
            expected=f"at least {size}, the size of the training clips",
            remedy=f"Build another store with --short-side {size} or more, or train without a store.",
        )
    return stored
