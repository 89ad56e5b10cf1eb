"""Dataset of few-shot episodes for torch's ``DataLoader``, which reads the clips of sampled videos."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..videos.dataset import ClipReader, ClipSource
from ..videos.decoding.clip import FrameSampler
from .episode import Episode
from .sampler import IndexSampler


class EpisodeDataset(Dataset[Episode]):
    """Dataset of `Episode` items with uint8 clips, for ``DataLoader(dataset, batch_size=None)``.

    Args:
        source: the videos. If bad videos are skipped, other videos of the class replace them (see `BadVideos`).
        sampler: the videos of each episode. It must use the labels of the source's catalog.
        frames: with a seed for training. Random choices also depend on the episode and the position in it.

    Raises:
        DmgalError: the store does not exist, has other content or is stale.
        VideoError: on access to an episode with an unreadable video. The message names the video.
    """

    def __init__(self, source: ClipSource, sampler: IndexSampler, frames: FrameSampler) -> None:
        self.catalog = source.catalog
        self.sampler = sampler
        self._reader = ClipReader(source, frames)
        self.bad_videos = self._reader.bad_videos

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
        return self._reader.clip(video, episode, position, "clip")


class AlternatingEpisodes(Dataset[Episode]):
    """Episodes of several datasets in turn: episode ``i`` is the one at index ``i`` of dataset ``i % n``.

    Args:
        datasets: of equal length, with clips of equal size.
    """

    def __init__(self, datasets: Sequence[EpisodeDataset]) -> None:
        self.datasets = datasets

    def __len__(self) -> int:
        return len(self.datasets[0])

    def __getitem__(self, episode: int) -> Episode:
        """Return an episode."""
        return self.datasets[episode % len(self.datasets)][episode]
