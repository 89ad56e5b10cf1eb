"""Training tasks of a process. The tasks of a step depend only on the seed and the step."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dmgal.episodes import Episode, EpisodeSampler
from dmgal.episodes.episode_dataset import EpisodeDataset
from dmgal.parallel import Loader
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.data import log_skipped
from dmgal.recipes.run.distributed import any_process, ignore_in_worker
from dmgal.videos import VideoCatalog
from dmgal.videos.bad_videos import BadVideos
from dmgal.videos.dataset import CACHE_BYTES, ClipSource
from dmgal.videos.decoding.clip import FrameSampler, TrainTransform


class TrainingData:
    """Episodes of the base classes, step by step.

    Args:
        recipe: the run's recipe.
        catalog: the training split.
        image_size: side of the square clips in pixels.
    """

    def __init__(self, recipe: Recipe, catalog: VideoCatalog, image_size: int) -> None:
        train, data, episode = recipe.train, recipe.data, recipe.episode
        self._recipe = recipe
        sampler = EpisodeSampler(
            catalog.labels,
            episode.n_way,
            episode.k_shot,
            episode.n_query,
            max(1, train.steps * train.tasks_per_step),
            train.seed,
            catalog.class_names,
        )
        transform = TrainTransform(image_size, scale=data.crop_scale, flip=data.flip, color_jitter=data.color_jitter)
        cache_bytes = CACHE_BYTES if data.keep_in_memory else 0
        source = ClipSource(catalog, data.decoder, data.store, cache_bytes, data.on_bad_video)
        self._dataset = EpisodeDataset(source, sampler, FrameSampler(data.num_frames, transform, train.seed))

    def steps(self, first: int, rank: int, world: int, pin_memory: bool) -> Iterator[list[Episode]]:
        """Return this process's tasks of every step, starting at step ``first``: every ``world``-th task of a step."""
        train = self._recipe.train
        tasks = train.tasks_per_step
        indices = [list(range(step * tasks + rank, (step + 1) * tasks, world)) for step in range(first, train.steps)]
        loader = Loader(
            self._dataset,
            batch_sampler=indices,
            collate_fn=_as_list,
            num_workers=self._recipe.data.num_workers,
            pin_memory=pin_memory,
            worker_init_fn=ignore_in_worker,
        )
        return iter(loader)

    def task(self, number: int) -> Episode:
        """Return any task of the run, also one of another process."""
        return self._dataset[number]

    def report_skipped(self) -> None:
        """Log the number of unreadable videos that any process met. Every process must call this."""
        report_skipped(self._dataset.bad_videos, "train")


def _as_list(episodes: list[Episode]) -> list[Episode]:
    return episodes


def report_skipped(bad_videos: BadVideos, split: str) -> None:
    """Log how many videos of a split could not be read by any process. Every process must call this."""
    catalog = bad_videos.catalog
    met = torch.zeros(len(catalog), dtype=torch.bool)
    met[bad_videos.met] = True
    videos = [catalog.videos[video] for video in any_process(met).nonzero().flatten().tolist()]
    if videos:
        log_skipped(len(videos), len(catalog), "which could not be read", videos, f"{split} ")
