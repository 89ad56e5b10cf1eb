"""Moved."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..videos import VideoCatalog
from ..videos.bad_videos import BadVideos, OnBadVideo
from ..videos.dataset import ClipReader, Folder, _open_stored_clips, _open_stored_frames
from ..videos.decoding.clip import random_frames, uniform_frames
from ..videos.decoding.video import DecoderName
from .episode import Episode
from .sampler import EpisodeIndices, hashed_seed


class IndexSampler(Protocol):
    """Any source of episodes, such as an `EpisodeSampler`, a `ReversalSampler` or a list of `EpisodeIndices`."""

    def __len__(self) -> int: ...
    def __getitem__(self, episode: int, /) -> EpisodeIndices: ...


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
