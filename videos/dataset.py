"""Datasets of episodes and of single videos for torch's ``DataLoader``, which turn indices into uint8 clips.

All random choices for a clip come from a generator seeded by the dataset's seed, the episode and the clip's position in
it. Results therefore depend neither on the number of workers nor on the order of reading.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DmgalError
from .bad_videos import BadVideos, OnBadVideo
from .catalog.catalog import VideoCatalog
from .decoding.clip import TestTransform, uniform_frames
from .decoding.video import ChooseFrames, DecoderName, read_clip
from .store.content import EvaluationClips
from .store.store import StoredClips, StoredFrames

Folder = str | os.PathLike[str]


class ClipReader:
    """Reader of chosen frames of a catalog's videos, with an optional cache of decoded videos in memory.

    Args:
        catalog: the videos.
        num_frames: ``T``. A damaged video is used only if at least this many of its frames decode.
        cache_bytes: size of the cache; 0 disables it. Full-size uint8 videos are cached in the order of their first
            read, until one does not fit. Then the cache stays as it is. Each worker process has its own cache.
        store: read the frames from the JPEGs of this store instead of the videos.
        decoder: for video files.
    """

    def __init__(
        self,
        catalog: VideoCatalog,
        num_frames: int,
        cache_bytes: int = 0,
        store: StoredFrames | None = None,
        decoder: DecoderName = "pyav",
    ) -> None:
        if num_frames < 1:
            raise DmgalError(
                "Cannot read videos.",
                received=f"num_frames={num_frames}",
                expected="at least 1",
                remedy="Set the number of frames per video to 1 or more.",
            )
        self.catalog = catalog
        self.num_frames = num_frames
        self._store = store
        self._decoder = decoder
        self._free_bytes = cache_bytes
        self._cache: dict[int, Tensor] = {}

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
        if self._store is not None:
            return self._store.read(video, choose, self.num_frames)
        return read_clip(self.catalog.path(video), choose, self.num_frames, self._decoder)


class VideoDataset(Dataset[Tensor]):
    """Dataset of the fixed test clips ``(T, 3, size, size)`` of a catalog's videos, for encoding every video once.

    Args:
        catalog: the videos.
        num_frames: ``T``; a clip consists of the middle frame of each of T equal segments.
        transform: deterministic, maps ``(T, 3, H, W)`` to ``(T, 3, size, size)``, both uint8.
        store: folder of a store (see `build_store`) of these clips.
        decoder: for video files, or the one that the store was built with.
        on_bad_video: "skip" returns a black clip for a video that cannot be read, and records it in
            ``bad_videos.met``. Exclude such clips from further use (see `without_bad`).

    Raises:
        DmgalError: the store does not exist, has other content or is stale.
        VideoError: on access to a video that cannot be read. The message names the video.
    """

    def __init__(
        self,
        catalog: VideoCatalog,
        num_frames: int,
        transform: Callable[[Tensor], Tensor],
        store: Folder | None = None,
        decoder: DecoderName = "pyav",
        on_bad_video: OnBadVideo = "error",
    ) -> None:
        self.catalog = catalog
        self.bad_videos = BadVideos(catalog, on_bad_video)
        self.transform = transform
        self._clips = _open_stored_clips(store, catalog, num_frames, transform, decoder)
        self._reader = ClipReader(catalog, num_frames, decoder=decoder)

    def __len__(self) -> int:
        return len(self.catalog)

    def __getitem__(self, video: int) -> Tensor:
        if not 0 <= video < len(self):
            raise IndexError(f"video {video} of {len(self)}")
        clip = self.bad_videos.clip_or_none(video, self._clip)
        if clip is None:
            return self.transform(torch.zeros(self._reader.num_frames, 3, 64, 64, dtype=torch.uint8))
        return clip

    def _clip(self, video: int) -> Tensor:
        if self._clips is not None:
            return self._clips.read(video)
        wanted = self._reader.num_frames
        return self.transform(self._reader.read(video, lambda num_frames: uniform_frames(num_frames, wanted)))


def _open_stored_clips(
    store: Folder | None,
    catalog: VideoCatalog,
    num_frames: int,
    transform: Callable[..., Tensor],
    decoder: DecoderName,
) -> StoredClips | None:
    if store is None:
        return None
    if not isinstance(transform, TestTransform):
        raise DmgalError(
            f"Test clips cannot be read from the store {os.fspath(store)}.",
            received=f"the transform {transform!r}",
            expected="a TestTransform, because stored clips are transformed with one",
            remedy="Use a TestTransform or no store.",
        )
    return StoredClips(store, catalog, EvaluationClips(num_frames, transform, decoder))


def _open_stored_frames(
    store: Folder | None, catalog: VideoCatalog, transform: Callable[..., Tensor], decoder: DecoderName
) -> StoredFrames | None:
    if store is None:
        return None
    frames = StoredFrames(store, catalog, decoder)
    size = getattr(transform, "size", 0)
    if frames.content.short_side < size:
        raise DmgalError(
            f"The training frames of the store {os.fspath(store)} are too small.",
            received=f"a short side of {frames.content.short_side} pixels",
            expected=f"at least {size}, the size of the training clips",
            remedy="Build another store with a longer short side, or train without a store.",
        )
    return frames
