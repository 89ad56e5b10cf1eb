"""Episodes and single videos for torch's ``DataLoader``: from indices to uint8 clips.

All that is random about a clip is drawn from a generator seeded by the data set's seed, the episode and the clip's
place in it. So results depend neither on the number of workers nor on what was read before.
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
    """Any source of episodes: an `EpisodeSampler`, a `ReversalSampler`, a list of `EpisodeIndices`."""

    def __len__(self) -> int: ...
    def __getitem__(self, episode: int, /) -> EpisodeIndices: ...


class ClipReader:
    """Reads chosen frames of a catalog's videos, and may keep whole decoded videos in memory.

    Args:
        catalog: where the videos lie.
        num_frames: ``T``; a damaged video is used only where as many of its frames decode.
        cache_bytes: videos are kept, as uint8 of full size, in the order in which they are first read, until one does
            not fit; from then on nothing more is kept and nothing is dropped. 0 keeps none. Each worker process has a
            cache of its own.
        store: take the frames from the JPEGs of this store instead of the videos.
        decoder: what decodes video files.
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
                "cannot read videos",
                received=f"num_frames={num_frames}",
                expected="at least 1",
                remedy="set the number of frames per video to 1 or more",
            )
        self.catalog = catalog
        self.num_frames = num_frames
        self._store = store
        self._decoder = decoder
        self._free_bytes = cache_bytes
        self._cache: dict[int, Tensor] = {}

    def read(self, video: int, choose: ChooseFrames) -> Tensor:
        """The chosen frames of a video, uint8 ``(T, 3, H, W)``; VideoError where it cannot be read."""
        if self._free_bytes > 0 and video not in self._cache:
            whole = self._read(video, range)
            self._free_bytes -= whole.nbytes
            if self._free_bytes < 0:
                return whole[list(choose(len(whole)))]
            self._cache[video] = whole
        if video in self._cache:
            return self._cache[video][list(choose(len(self._cache[video])))]
        return self._read(video, choose)

    def _read(self, video: int, choose: ChooseFrames) -> Tensor:
        if self._store is not None:
            return self._store.read(video, choose, self.num_frames)
        return read_clip(self.catalog.path(video), choose, self.num_frames, self._decoder)


class EpisodeDataset(Dataset[Episode]):
    """One whole `Episode` of uint8 clips per item; use it with ``DataLoader(dataset, batch_size=None)``.

    Args:
        catalog: the videos; their labels are the ones the sampler was given.
        sampler: which videos make up each episode.
        num_frames: ``T``, frames per video.
        transform: from a clip ``(T, 3, H, W)`` and a generator to ``(T, 3, size, size)``, both uint8.
        training: random frames of each segment instead of the middle ones.
        seed: frames and augmentation are a function of it, the episode and the place in the episode.
        frame_cache: keep decoded videos in memory; for small data sets (see `ClipReader` for the rule).
        cache_bytes: bound of that memory in each process, 1 GiB by default.
        store: folder of a store (see `build_store`). Test clips are then the very same; training frames have been
            JPEGs, their short side at most the store's.
        decoder: what decodes, or has decoded, video files.
        on_bad_video: "skip" puts another video of its class in the place of one that cannot be read (see `BadVideos`).

    Raises:
        DmgalError: the store is not there, holds something else or is stale.
        VideoError: when an episode is asked for that has an unreadable video, which is named.
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
        self._clips = None if training else _stored_clips(store, catalog, num_frames, transform, decoder)
        frames = _stored_frames(store, catalog, transform, decoder) if training else None
        self._reader = ClipReader(catalog, num_frames, cache_bytes if frame_cache else 0, frames, decoder)

    def __len__(self) -> int:
        return len(self.sampler)

    def __getitem__(self, episode: int) -> Episode:
        """Episode ``0 <= episode < len(self)``; IndexError outside."""
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

    def _clip(self, episode: int, place: int, video: int) -> Tensor:
        if self._clips is not None:
            return self._clips.read(video)
        generator = torch.Generator()
        seed = hashed_seed(self.seed, episode, place, "clip")

        def choose(num_frames: int) -> list[int]:
            if not self.training:
                return uniform_frames(num_frames, self.num_frames)
            # seeded here, because a reader may ask twice (see `read_clip`) and must get the same answer
            return random_frames(num_frames, self.num_frames, generator.manual_seed(seed))

        clip = self._reader.read(video, choose)
        return self.transform(clip, generator.manual_seed(hashed_seed(seed, "transform")))


class VideoDataset(Dataset[Tensor]):
    """Video ``i`` of a catalog as its fixed test clip ``(T, 3, size, size)``, for encoding every video once.

    Args:
        catalog: the videos.
        num_frames: ``T``; the middle frame of each of T equal segments is taken.
        transform: deterministic, from ``(T, 3, H, W)`` to ``(T, 3, size, size)``, both uint8.
        store: folder of a store (see `build_store`) that holds these very clips.
        decoder: what decodes, or has decoded, video files.
        on_bad_video: "skip" gives a black clip for a video that cannot be read, and notes it in ``bad_videos.met``:
            leave it out of what the clips are used for (see `without_bad`).

    Raises:
        DmgalError: the store is not there, holds something else or is stale.
        VideoError: when a video is asked for that cannot be read; it is named.
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
        self._clips = _stored_clips(store, catalog, num_frames, transform, decoder)
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


def _stored_clips(
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
            f"test clips cannot be taken from the store {os.fspath(store)}",
            received=f"the transform {transform!r}",
            expected="a TestTransform, which stored clips went through",
            remedy="use a TestTransform, or no store",
        )
    return StoredClips(store, catalog, EvaluationClips(num_frames, transform, decoder))


def _stored_frames(
    store: Folder | None, catalog: VideoCatalog, transform: Callable[..., Tensor], decoder: DecoderName
) -> StoredFrames | None:
    if store is None:
        return None
    frames, size = StoredFrames(store, catalog, decoder), getattr(transform, "size", 0)
    if frames.content.short_side < size:
        raise DmgalError(
            f"the training frames of the store {os.fspath(store)} are too small",
            received=f"a short side of {frames.content.short_side} pixels",
            expected=f"at least {size}, the size of the training clips",
            remedy="build another store with a longer short side, or train without a store",
        )
    return frames
