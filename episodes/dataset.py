"""Episodes and single videos for torch's ``DataLoader``: from indices to uint8 clips.

All that is random about a clip is drawn from a generator seeded by the data set's seed, the episode and the clip's
place in it. So results depend neither on the number of workers nor on what was read before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DmgalError
from .catalog import VideoCatalog
from .episode import Episode
from .frames import random_frames, uniform_frames
from .sampler import EpisodeIndices, hashed_seed
from .video import ChooseFrames, read_clip


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
    """

    def __init__(self, catalog: VideoCatalog, num_frames: int, cache_bytes: int = 0) -> None:
        if num_frames < 1:
            raise DmgalError(
                "cannot read videos",
                received=f"num_frames={num_frames}",
                expected="at least 1",
                remedy="set the number of frames per video to 1 or more",
            )
        self.catalog = catalog
        self.num_frames = num_frames
        self._free_bytes = cache_bytes
        self._cache: dict[int, Tensor] = {}

    def read(self, video: int, choose: ChooseFrames) -> Tensor:
        """The chosen frames of a video, uint8 ``(T, 3, H, W)``; VideoError where it cannot be read."""
        path = self.catalog.path(video)
        if self._free_bytes > 0 and video not in self._cache:
            whole = read_clip(path, range, self.num_frames)
            self._free_bytes -= whole.nbytes
            if self._free_bytes < 0:
                return whole[list(choose(len(whole)))]
            self._cache[video] = whole
        if video in self._cache:
            return self._cache[video][list(choose(len(self._cache[video])))]
        return read_clip(path, choose, self.num_frames)


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

    Raises:
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
    ) -> None:
        self.catalog = catalog
        self.sampler = sampler
        self.num_frames = num_frames
        self.transform = transform
        self.training = training
        self.seed = seed
        self._reader = ClipReader(catalog, num_frames, cache_bytes if frame_cache else 0)

    def __len__(self) -> int:
        return len(self.sampler)

    def __getitem__(self, episode: int) -> Episode:
        """Episode ``0 <= episode < len(self)``; IndexError outside."""
        if not 0 <= episode < len(self):
            raise IndexError(f"episode {episode} of {len(self)}")
        indices = self.sampler[episode]
        videos = (*indices.support, *indices.query)
        clips = torch.stack([self._clip(episode, place, video) for place, video in enumerate(videos)])
        num_support = len(indices.support)
        return Episode(
            support=clips[:num_support],
            support_labels=torch.tensor(indices.support_labels),
            query=clips[num_support:],
            query_labels=torch.tensor(indices.query_labels),
            class_names=tuple(self.catalog.class_names[c] for c in indices.classes),
        )

    def _clip(self, episode: int, place: int, video: int) -> Tensor:
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

    Raises:
        VideoError: when a video is asked for that cannot be read; it is named.
    """

    def __init__(self, catalog: VideoCatalog, num_frames: int, transform: Callable[[Tensor], Tensor]) -> None:
        self.catalog = catalog
        self.transform = transform
        self._reader = ClipReader(catalog, num_frames)

    def __len__(self) -> int:
        return len(self.catalog)

    def __getitem__(self, video: int) -> Tensor:
        if not 0 <= video < len(self):
            raise IndexError(f"video {video} of {len(self)}")
        wanted = self._reader.num_frames
        return self.transform(self._reader.read(video, lambda num_frames: uniform_frames(num_frames, wanted)))
