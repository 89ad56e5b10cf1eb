"""Tasks of a training: those of each step from the base classes, and fixed ones on the validation classes.

The tasks of a step depend only on the seed and the step. All processes share a validation.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import NamedTuple

import torch
from accelerate import Accelerator

from dmgal.episodes import Episode, EpisodeSampler, FewShotRecognizer
from dmgal.episodes.episode_dataset import AlternatingEpisodes, EpisodeDataset
from dmgal.episodes.evaluation import Estimate
from dmgal.loader import Items, Loader
from dmgal.recipes.run.config import DataConfig, Recipe
from dmgal.recipes.run.data import list_catalog, log_skipped, test_clips
from dmgal.recipes.run.distributed import any_process, encode_shared, evaluate_shared, ignore_in_worker
from dmgal.recipes.run.text import with_own_texts
from dmgal.recipes.training.fsdp import gathered_weights
from dmgal.videos import VideoCatalog
from dmgal.videos.bad_videos import BadVideos, without_bad
from dmgal.videos.dataset import CACHE_BYTES, ClipSource
from dmgal.videos.decoding.clip import FrameSampler, Size, TrainTransform

logger = logging.getLogger(__name__)
VALIDATION_SEED = 1
FEW_CLASSES = 16
"""Number of base classes below which a training on them alone is doubtful (docs/motion.md)."""


class TrainingData:
    """Episodes of a catalog's base classes, step by step, with clips of ``image_size``.

    With ``data.motion_world``, every second episode is one of motion world.
    """

    def __init__(self, recipe: Recipe, catalog: VideoCatalog, image_size: Size) -> None:
        self._recipe = recipe
        self._real = _episodes(recipe, catalog, image_size)
        self._dataset: Items[Episode] = self._real
        if recipe.data.motion_world is not None and recipe.train.steps:
            world = replace(recipe, data=motion_world(recipe.data))
            generated = _episodes(world, list_catalog(world.data).split("train"), image_size)
            self._dataset = AlternatingEpisodes((self._real, generated))

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
        report_skipped(self._real.bad_videos, "train")


def _episodes(recipe: Recipe, catalog: VideoCatalog, image_size: Size) -> EpisodeDataset:
    train, data, episode = recipe.train, recipe.data, recipe.episode
    sampler = EpisodeSampler(
        catalog.labels,
        episode.n_way,
        episode.k_shot,
        episode.n_query,
        max(1, train.steps * train.tasks_per_step),
        train.seed,
        catalog.class_names,
        catalog.groups,
    )
    transform = TrainTransform(image_size, scale=data.crop_scale, flip=data.flip, color_jitter=data.color_jitter)
    cache_bytes = CACHE_BYTES if data.keep_in_memory else 0
    source = ClipSource(catalog, data.decoder, data.store, cache_bytes, data.on_bad_video)
    return EpisodeDataset(source, sampler, FrameSampler(data.num_frames, transform, train.seed))


def motion_world(data: DataConfig) -> DataConfig:
    """Return the settings of a motion world beside the data of a run, with clips sampled alike but never mirrored."""
    assert data.motion_world is not None
    return replace(
        data,
        root=data.motion_world,
        generate="motion_world",
        split_file=None,
        list_format=None,
        group=None,
        report=None,
        store=None,
        seed=0,
        flip=False,
    )


def _as_list(episodes: list[Episode]) -> list[Episode]:
    return episodes


class Accuracies(NamedTuple):
    """Accuracies of a validation in ``[0, 1]``: by task ``(E,)``, and over all queries of each class ``(C,)``."""

    tasks: torch.Tensor
    classes: torch.Tensor


class Validation:
    """Fixed tasks of a recipe on the validation classes. Impossible tasks raise an error here, before the first step.

    On several processes each encodes and answers its share.

    Attributes:
        tasks_hash: hash of the tasks. Accuracies with equal hashes are comparable.
        only_step: the only step to validate, and the last of the training. None: those of the recipe.
    """

    only_step: int | None = None

    def __init__(
        self,
        recipe: Recipe,
        catalog: VideoCatalog,
        recognizer: FewShotRecognizer,
        accelerator: Accelerator,
        progress: bool,
    ) -> None:
        self._recipe, self._catalog, self._recognizer = recipe, catalog, recognizer
        self._accelerator, self._progress = accelerator, progress
        self._clips = test_clips(catalog, recipe, recognizer.encoder.image_size)
        self._tasks(catalog)
        self.tasks_hash = self._hash_of_tasks()

    def accuracies(self, step: int) -> Accuracies:
        """Return the accuracies of all tasks on every process. Every process must call this.

        Args:
            step: number of steps that the weights were trained for.
        """
        recipe, device = self._recipe, self._accelerator.device
        workers = 0 if recipe.data.keep_in_memory else recipe.data.num_workers
        with gathered_weights(self._recognizer), self._accelerator.autocast():
            states = encode_shared(
                self._recognizer, self._clips, num_workers=workers, device=device, progress=self._progress
            )
            readable, states = without_bad(self._catalog, states, _met_anywhere(self._clips.bad_videos))
            states = with_own_texts(self._recognizer, states, readable)
            evaluation = evaluate_shared(self._recognizer, states, self._tasks(readable), device, self._progress)
        assert evaluation.answers is not None
        truth, right = evaluation.answers.truth.long(), evaluation.answers.right
        counts = torch.bincount(truth)
        by_class = torch.bincount(truth, weights=right)[counts > 0] / counts[counts > 0]
        return Accuracies(evaluation.accuracies, by_class)

    def report_skipped(self) -> None:
        """Log the number of unreadable videos that any process met. Every process must call this."""
        report_skipped(self._clips.bad_videos, "val")

    def _hash_of_tasks(self) -> str:
        """Hash everything that makes accuracies comparable: the tasks, and the frames of their videos."""
        data, episode, train = self._recipe.data, self._recipe.episode, self._recipe.train
        frames = data.num_frames, data.test_resize, data.decoder, data.generate, data.seed
        tasks = episode.n_way, episode.k_shot, train.validation_episodes, VALIDATION_SEED
        videos: tuple[object, ...] = (
            self._catalog.class_names,
            self._catalog.labels.tolist(),
            tuple(self._catalog.videos),
        )
        videos += () if self._catalog.groups is None else (self._catalog.groups,)
        return blake2b(repr((frames, tasks, videos)).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()

    def _tasks(self, catalog: VideoCatalog) -> EpisodeSampler:
        episode, episodes = self._recipe.episode, self._recipe.train.validation_episodes
        tasks = episode.n_way, episode.k_shot, 1, episodes, VALIDATION_SEED
        return EpisodeSampler(catalog.labels, *tasks, catalog.class_names, catalog.groups)


@dataclass
class Selection:
    """Best validation so far. Its fields are saved with a checkpoint.

    Attributes:
        best: accuracy in percent, None before the first validation.
        accuracies: accuracy of the best validation by task. Tasks never change, so gains are paired.
        step: step of the last validation.
        since_best: number of validations since the best one.
        tasks: hash of the tasks; empty in older checkpoints.
        is_start: True if the best weights are those of a trained adapter that the run started from. Only a gain whose
            intervals over tasks and over classes are both above zero replaces them. New classes are other classes, and
            few validation classes say little of them.
        by_class: accuracy of the best validation by class; empty in older checkpoints.
    """

    best: float | None = None
    accuracies: list[float] = field(default_factory=list)
    step: int = -1
    since_best: int = 0
    tasks: str = ""
    is_start: bool = False
    by_class: list[float] = field(default_factory=list)

    def take(self, step: int, accuracies: Accuracies) -> tuple[bool, str]:
        """Add a validation and return whether it is the best so far, and a line for the log."""
        result, gain = Estimate.of(accuracies.tasks), ""
        better = self.best is None or result.mean > self.best
        if len(self.accuracies) == len(accuracies.tasks):
            change = _change(accuracies.tasks, self.accuracies)
            if self.is_start:
                better = change.mean > change.half_width
                if 0 < len(self.by_class) == len(accuracies.classes):
                    over_classes = _change(accuracies.classes, self.by_class)
                    better = better and over_classes.mean > over_classes.half_width
            of_what = "start" if self.is_start else "previous best"
            gain = f", {change.mean:+.1f} ± {change.half_width:.1f} over the {of_what}" if better else ""
        self.step = step
        self.is_start = step == 0 or (self.is_start and not better)
        self.since_best = 0 if better else self.since_best + 1
        if better:
            self.best, self.accuracies, self.by_class = result.mean, *(part.tolist() for part in accuracies)
        half_width = "" if math.isinf(result.half_width) else f" ± {result.half_width:.1f}"
        note = f" (best so far{gain})" if better else ""
        return better, f"step {step}: validation {result.mean:.1f}{half_width} %{note}"


def _change(values: torch.Tensor, before: list[float]) -> Estimate:
    return Estimate.of(values - torch.tensor(before, dtype=torch.float64))


def warn_of_few_classes(recipe: Recipe, catalog: VideoCatalog) -> None:
    """Log a warning if a new adapter would be trained on few base classes."""
    num_classes = len(set(catalog.labels.tolist()))
    if recipe.train.steps and num_classes < FEW_CLASSES and recipe.adapter and not recipe.is_continued:
        logger.warning(
            "Only %d base classes: on new classes, an adapter trained on so few is often worse than the frozen "
            "backbone. To continue from a trained adapter, pass --adapter.start %s",
            num_classes,
            "tiny-clip-motion" if recipe.backbone.name == "tiny-clip" else "RUN, a run on data/motion_world",
        )


def report_skipped(bad_videos: BadVideos, split: str) -> None:
    """Log how many videos of a split could not be read by any process. Every process must call this."""
    catalog, bad = bad_videos.catalog, _met_anywhere(bad_videos)
    if bad:
        names = [catalog.videos[video] for video in bad]
        log_skipped(len(bad), len(catalog), "which could not be read", names, f"{split} ")


def _met_anywhere(bad_videos: BadVideos) -> list[int]:
    """Return the videos that any process could not read. Every process must call this."""
    met = torch.zeros(len(bad_videos.catalog), dtype=torch.bool)
    met[bad_videos.met] = True
    return any_process(met).nonzero().flatten().tolist()
