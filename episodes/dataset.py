"""Datasets of episodes and of single videos for torch's ``DataLoader``, which turn indices into uint8 clips.

All random choices for a clip come from a generator seeded by the dataset's seed, the episode and the clip's position in
it. Results therefore depend neither on the number of workers nor on the order of reading.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DmgalError
from .catalog import VideoCatalog
from .catalogs.bad_videos import BadVideos, OnBadVideo
from .episode import Episode
from .frames import random_frames, uniform_frames
from .sampler import EpisodeIndices, hashed_seed
from .store import EvaluationClips, StoredClips, StoredFrames
from .transforms import TestTransform
from .video import ChooseFrames, DecoderName, read_clip

Folder = str | os.PathLike[str]


class IndexSampler(Protocol):
    """Any source of episodes, such as an `EpisodeSampler`, a `ReversalSampler` or a list of `EpisodeIndices`."""

    def __len__(self) -> int: ...
    def __getitem__(self, episode: int, /) -> EpisodeIndices: ...


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


class EpisodeDataset(Dataset[Episode]):
    """Dataset of `Episode` items with uint8 clips, for ``DataLoader(dataset, batch_size=None)``.

    Args:
        catalog: the videos. The sampler must use the labels of this catalog.
        sampler: the videos of each episode.
        num_frames: ``T``, frames per video.
        transform: maps a clip ``(T, 3, H, W)`` and a generator to ``(T, 3, size, size)``, both uint8.
        training: use a random frame of each segment instead of the middle one.
        seed: determines frames and augmentation, together with the episode and the position in it.
        frame_cache: cache decoded videos in memory, for small datasets (see `ClipReader`).
        cache_bytes: size of that cache in each process, 1 GiB by default.
        store: folder of a store (see `build_store`). Test clips from a store are bit-identical to decoded ones.
            Training frames are JPEGs whose short side is at most that of the store.
        decoder: for video files, or the one that the store was built with.
        on_bad_video: "skip" replaces a video that cannot be read by another video of its class (see `BadVideos`).

    Raises:
        DmgalError: the store does not exist, has other content or is stale.
        VideoError: on access to an episode with an unreadable video. The message names the video.
    """

    def __init__(
        self,
        catalog: VideoCatalog,
        sampler: IndexSampler,
        num_frames: int,
        transform: Callable[[Tensor, torch.Generator], Tensor],
        training: bool,
        seed: int,
        frame_cache: bool = False,
        cache_bytes: int = 2**30,
        store: Folder | None = None,
        decoder: DecoderName = "pyav",
        on_bad_video: OnBadVideo = "error",
    ) -> None:
        self.catalog = catalog
        self.bad_videos = BadVideos(catalog, on_bad_video)
        self.sampler = sampler
        self.num_frames = num_frames
        self.transform = transform
        self.training = training
        self.seed = seed
        self._clips = None if training else _open_stored_clips(store, catalog, num_frames, transform, decoder)
        frames = _open_stored_frames(store, catalog, transform, decoder) if training else None
        self._reader = ClipReader(catalog, num_frames, cache_bytes if frame_cache else 0, frames, decoder)

    def __len__(self) -> int:
        return len(self.sampler)

    def __getitem__(self, episode: int) -> Episode:
        """Return the episode at index ``0 <= episode < len(self)``.

        Raises:
            IndexError: the index is outside this range.
        """
        if not 0 <= episode < len(self):
            raise IndexError(f"episode {episode} of {len(self)}")
        indices = self.sampler[episode]
        videos = (*indices.support, *indices.query)
        clips = torch.stack(self.bad_videos.clips(videos, partial(self._clip, episode)))
        num_support = len(indices.support)
        return Episode(
            support=clips[:num_support],
            support_labels=torch.tensor(indices.support_labels),
            query=clips[num_support:],
            query_labels=torch.tensor(indices.query_labels),
            class_names=tuple(self.catalog.class_names[c] for c in indices.classes),
            classes=torch.tensor(indices.classes),
        )

    def _clip(self, episode: int, position: int, video: int) -> Tensor:
        if self._clips is not None:
            return self._clips.read(video)
        generator = torch.Generator()
        seed = hashed_seed(self.seed, episode, position, "clip")

        def choose(num_frames: int) -> list[int]:
            if not self.training:
                return uniform_frames(num_frames, self.num_frames)
            # `read_clip` may call this twice and must get the same frames, so the generator is seeded here.
            return random_frames(num_frames, self.num_frames, generator.manual_seed(seed))

        clip = self._reader.read(video, choose)
        return self.transform(clip, generator.manual_seed(hashed_seed(seed, "transform")))


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
