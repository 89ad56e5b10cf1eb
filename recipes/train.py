"""Trains a recognizer on episodes of the base classes, selects on the validation classes, never looks at the test.

    dmgal train method/dmgal_adapter data/moving_shapes --shots 1 --out runs/mine
    accelerate launch -m dmgal.recipes.train method/dmgal_adapter data/moving_shapes
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m dmgal.recipes.train method/dmgal_adapter data/moving_shapes

What a recipe's layers leave open has a default; flags win over layers.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from accelerate import Accelerator, PartialState
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from dmgal.episodes import (
    Episode,
    EpisodeSampler,
    FewShotRecognizer,
    VideoCatalog,
    encode_videos,
    evaluate,
)
from dmgal.episodes.bad_videos import without_bad
from dmgal.episodes.dataset import EpisodeDataset
from dmgal.episodes.sampler import hashed_seed
from dmgal.episodes.transforms import TrainTransform
from dmgal.errors import DmgalError
from dmgal.recipes.bad_videos import tell_skipped
from dmgal.recipes.build import (
    build_catalog,
    build_recognizer,
    count_parameters,
    dtype_of,
    freeze_batch_norm,
    test_clips,
    with_base_classes,
)
from dmgal.recipes.config import Recipe, parse
from dmgal.recipes.entry import as_description, run_recipe
from dmgal.recipes.layers import bundled_layers
from dmgal.recipes.optimization import Plateau, build_optimizer, build_schedule, loss_weights, task_loss
from dmgal.recipes.runs import Run, peak_memory_mb
from dmgal.recipes.weights import load_checkpoint, save_best, save_checkpoint

VALIDATION_SEED = 1


@dataclass(frozen=True)
class Train:
    """Options of the command, beside the recipe."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    out: Path | None = None
    """Run folder; None: runs/ and the names of the layers."""
    resume: bool = False
    """Continue the run in the folder."""
    list: bool = False
    """Print the bundled layers and stop."""
    quiet: bool = False
    """No progress bars."""


class Trainer:
    """The state of one training run; ``run`` below puts it together."""

    def __init__(
        self, recipe: Recipe, run: Run, recognizer: FewShotRecognizer, catalog: VideoCatalog, quiet: bool
    ) -> None:
        self.recipe, self.run, self.catalog = recipe, run, catalog
        precision = recipe.train.precision
        # a trained backbone may have parts that the pooling does not read, such as the projection behind a map
        unused = DistributedDataParallelKwargs(find_unused_parameters=recipe.backbone.trainable)
        half = precision if precision in ("bf16", "fp16") else "no"
        self.accelerator = Accelerator(mixed_precision=half, kwargs_handlers=[unused])
        # depth-wise convolutions leave their gradients in another memory order than DDP's buckets: harmless
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        self._check_division(recipe.train.tasks_per_step)
        if recipe.train.steps and not count_parameters(recognizer, trained_only=True):
            raise DmgalError(
                "There is nothing to train.",
                received=f"train.steps={recipe.train.steps}, a frozen backbone, no adapter, a head that learns nothing",
                expected="an adapter, a trainable backbone or a head that learns; or no steps",
                remedy="add a method such as method/dmgal_adapter, or pass --train.steps 0",
            )
        self.main = self.accelerator.is_main_process
        self.progress = self.main and not quiet
        self.recognizer = recognizer.to(self.accelerator.device, dtype_of(precision))
        self.loss_weights = loss_weights(recognizer.head, recipe.train.loss_weights)
        self.optimizer = build_optimizer(recognizer, recipe)
        self.schedule = build_schedule(self.optimizer, recipe.train.warmup_steps, recipe.train.steps)
        self.step, self.best, self.seconds = 0, -math.inf, 0.0
        self._plateau = Plateau(recipe.episode.n_way)
        self._validation = catalog.split("val")
        self._clips = test_clips(self._validation, recipe, recognizer.encoder.image_size)
        self._validation_tasks(self._validation)  # refused now rather than after the first steps

    def fit(self) -> None:
        """All remaining steps; the best weights of the validation are in the run folder afterwards."""
        train = self.recipe.train
        episodes = self._episodes()
        model, optimizer = self.accelerator.prepare(self.recognizer, self.optimizer)
        tasks = train.tasks_per_step
        bar = tqdm(
            total=train.steps * tasks,
            initial=self.step * tasks,
            desc="train",
            unit="episode",
            disable=not self.progress,
        )
        for batch in episodes:
            start = time.perf_counter()
            entry = self._train_step(model, optimizer, batch)
            self.seconds += time.perf_counter() - start
            self._report(bar, entry)
            if self.step % train.validate_every == 0 or self.step == train.steps:
                self.validate()
            if self.main and (self.step % train.checkpoint_every == 0 or self.step == train.steps):
                self.checkpoint()
            self.accelerator.wait_for_everyone()
        bar.close()
        self._tell_skipped()

    def _tell_skipped(self) -> None:
        """How many training videos this process met that cannot be read."""
        videos, bad = self._bad_videos.catalog.videos, self._bad_videos.met
        if bad:
            tell_skipped(len(bad), len(videos), "which could not be read", [videos[video] for video in bad])

    def validate(self) -> None:
        """Accuracy on validation classes; better weights are saved."""
        if self.main:
            states = encode_videos(self.recognizer, self._clips, device=self.accelerator.device, progress=self.progress)
            readable, states = without_bad(self._validation, states, self._clips.bad_videos.met)
            tasks = self._validation_tasks(readable)
            result = evaluate(self.recognizer, states, tasks, self.accelerator.device, self.progress).accuracy
            self.run.log(step=self.step, validation_accuracy=result.mean, half_width=result.half_width)
            better = result.mean > self.best
            self._say(f"step {self.step}: validation {result} %{' (best so far)' if better else ''}")
            if better:
                self.best = result.mean
                save_best(self.recognizer, self.run)
        self.accelerator.wait_for_everyone()

    def _validation_tasks(self, catalog: VideoCatalog) -> EpisodeSampler:
        episode, episodes = self.recipe.episode, self.recipe.train.validation_episodes
        tasks = episode.n_way, episode.k_shot, 1, episodes, VALIDATION_SEED
        return EpisodeSampler(catalog.labels, *tasks, catalog.class_names)

    def checkpoint(self) -> None:
        save_checkpoint(
            self.recognizer, self.optimizer, self.run, {"step": self.step, "best": self.best, "seconds": self.seconds}
        )

    def restore(self) -> None:
        progress = load_checkpoint(self.recognizer, self.optimizer, self.run)
        if progress is None:
            return
        self.step, self.best, self.seconds = progress["step"], progress["best"], progress["seconds"]  # type: ignore[assignment]
        train = self.recipe.train
        self.schedule = build_schedule(self.optimizer, train.warmup_steps, train.steps, done=self.step)
        if self.main:
            self.run.rewind_log(self.step)
        self._say(f"resumed at step {self.step}")

    def _check_division(self, tasks: int) -> None:
        world = self.accelerator.num_processes
        if tasks % world:
            raise DmgalError(
                "The tasks of a step do not divide among the processes.",
                received=f"tasks_per_step={tasks}, {world} processes",
                expected="a multiple of the number of processes",
                remedy=f"pass --train.tasks-per-step {math.ceil(tasks / world) * world}",
            )

    def _train_step(self, model: nn.Module, optimizer: AcceleratedOptimizer, episodes: list[Episode]) -> dict[str, Any]:
        model.train()
        torch.manual_seed(hashed_seed(self.recipe.train.seed, self.step, "step"))  # alike on all processes, and resumed
        if self.recipe.backbone.freeze_batch_norm:
            freeze_batch_norm(self.recognizer)
        episodes = [episode.to(self.accelerator.device, non_blocking=True) for episode in episodes]
        with self.accelerator.autocast():
            outputs = model(episodes)
        loss, accuracy, terms = task_loss(outputs, episodes, self.loss_weights)
        if not torch.isfinite(loss):
            raise DmgalError(
                "The loss is not a finite number.",
                received=f"{loss.item()} at step {self.step + 1}",
                expected="a finite loss; nothing after the last checkpoint was saved",
                remedy="lower --train.learning-rate, or use --train.precision float32",
            )
        optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        trained = [p for p in self.recognizer.parameters() if p.requires_grad]
        norm = self.accelerator.clip_grad_norm_(trained, self.recipe.train.clip_norm)
        optimizer.step()
        self.schedule.step()
        self.step += 1
        numbers = torch.stack([value.detach().double() for value in (loss, accuracy, *terms.values())])
        mean: list[float] = self.accelerator.reduce(numbers, "mean").tolist()
        losses = dict(zip(terms, mean[2:], strict=True))
        return {"loss": mean[0], "losses": losses, "accuracy": mean[1], "gradient_norm": norm.item()}

    def _report(self, bar: tqdm[Any], entry: dict[str, Any]) -> None:
        if not self.main:
            return
        self.run.log(step=self.step, **entry, seconds=round(self.seconds, 3), peak_memory_mb=peak_memory_mb())
        bar.set_postfix(loss=f"{entry['loss']:.3f}", accuracy=f"{100 * entry['accuracy']:.0f} %", refresh=False)
        bar.update(self.recipe.train.tasks_per_step)
        notice = self._plateau.notice(self.step, entry["losses"]["cross_entropy"])
        if notice:
            self._say(notice)

    def _episodes(self) -> Iterator[list[Episode]]:
        """This process's tasks of every remaining step; which tasks a step has does not depend on the processes."""
        train, data, episode = self.recipe.train, self.recipe.data, self.recipe.episode
        base, tasks = self.catalog.split("train"), train.tasks_per_step
        sampler = EpisodeSampler(
            base.labels,
            episode.n_way,
            episode.k_shot,
            episode.n_query,
            max(1, train.steps * tasks),
            train.seed,
            base.class_names,
        )
        transform = TrainTransform(
            self.recognizer.encoder.image_size[0], scale=data.crop_scale, flip=data.flip, color_jitter=data.color_jitter
        )
        dataset = EpisodeDataset(
            base,
            sampler,
            data.num_frames,
            transform,
            training=True,
            seed=train.seed,
            frame_cache=data.keep_in_memory,
            store=data.store,
            decoder=data.decoder,
            on_bad_video=data.on_bad_video,
        )
        self._bad_videos = dataset.bad_videos
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        mine = [list(range(step * tasks + rank, (step + 1) * tasks, world)) for step in range(self.step, train.steps)]
        loader = DataLoader(
            dataset,
            batch_sampler=mine,
            collate_fn=_as_list,
            num_workers=data.num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        return iter(loader)

    def _say(self, message: str) -> None:
        if self.main:
            tqdm.write(message)


def run(
    recipe: Recipe,
    out: Path,
    *,
    backbone: nn.Module | None = None,
    head: nn.Module | None = None,
    catalog: VideoCatalog | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Run:
    """Trains by a recipe into a run folder. Objects that are given take the place of what the recipe names."""
    set_seed(recipe.train.seed)
    catalog = build_catalog(recipe.data, progress=not quiet) if catalog is None else catalog
    if head is None:
        recipe = with_base_classes(recipe, catalog)
    recognizer = build_recognizer(recipe, backbone=backbone, head=head)
    folder = Run(out)
    trainer = Trainer(recipe, folder, recognizer, catalog, quiet)
    if trainer.main:
        folder.start(recipe, resume)
        if recipe.data.split_file is None and recipe.data.generate == "no":
            catalog.to_csv(folder.folder / "split.csv")
    trainer.accelerator.wait_for_everyone()
    if resume:
        trainer.restore()
    trainer._say(_start_line(trainer))
    if recipe.train.steps > trainer.step:
        trainer.fit()
    elif trainer.best == -math.inf:
        trainer.validate()
    trainer.accelerator.end_training()
    return folder


def _start_line(trainer: Trainer) -> str:
    accelerator, recipe = trainer.accelerator, trainer.recipe
    trained, everything = (count_parameters(trainer.recognizer, trained_only=only) for only in (True, False))
    return (
        f"{accelerator.num_processes} process(es) on {accelerator.device.type}, {recipe.train.precision}, "
        f"{recipe.train.tasks_per_step} task(s) a step, {trained:,} of {everything:,} parameters trained"
    )


def _as_list(episodes: list[Episode]) -> list[Episode]:
    return episodes


def main(argv: list[str] | None = None) -> int | None:
    """Train by the recipe of a command line."""
    options, names = parse(argv, prog="dmgal train", description=as_description(__doc__), wrapper=Train)
    if options.list:
        print("\n".join(bundled_layers()))
        return 0
    out = options.out or Path("runs") / "_".join(Path(name).stem for name in names or ["default"])
    folder = run(options.recipe, out, resume=options.resume, quiet=options.quiet)
    PartialState().print(f"run folder: {folder.folder}\nnext: dmgal evaluate {folder.folder}")
    return 0


if __name__ == "__main__":
    run_recipe(main)
