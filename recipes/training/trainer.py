"""Training loop: steps, validations, checkpoints, and the end of a run that was stopped."""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator

from dmgal.backbones import FrameEncoder, FrameMemory
from dmgal.episodes import Episode, FewShotRecognizer
from dmgal.episodes.evaluation import Estimate
from dmgal.errors import DmgalError, first_line
from dmgal.recipes.run.distributed import alike_everywhere
from dmgal.recipes.run.folder import Run, writing
from dmgal.recipes.run.weights import best_state, save_best
from dmgal.recipes.training.checks import check_training
from dmgal.recipes.training.folds import Training
from dmgal.recipes.training.fsdp import optimizer_follows, shard_blocks
from dmgal.recipes.training.launching import compile_blocks, set_precision
from dmgal.recipes.training.optimization import MovingAverage, Plateau, build_optimizer, build_schedule
from dmgal.recipes.training.signals import Preempted, StopSignal
from dmgal.recipes.training.step import StepResult, TrainingStep, make_two_pass, measure_head_norms
from dmgal.recipes.training.tasks import TrainingData
from dmgal.recipes.training.tracking import Tracking
from dmgal.recipes.training.training_state import TrainingState

logger = logging.getLogger(__name__)


class Trainer:
    """One training of a run, created by ``dmgal.recipes.train.run``."""

    def __init__(
        self,
        training: Training,
        recognizer: FewShotRecognizer,
        accelerator: Accelerator,
        stop: StopSignal,
        quiet: bool,
    ) -> None:
        self.training = training
        recipe, run, catalog = training.recipe, Run(training.folder), training.catalog
        self.recipe, self.run, self.accelerator, self.stop = recipe, run, accelerator, stop
        self.main = accelerator.is_main_process
        self.recognizer = recognizer
        if recipe.train.frame_memory is not None:
            remember_frames(recognizer, 1e9 * recipe.train.frame_memory)
        check_training(recipe, recognizer, accelerator)
        set_precision(recipe, recognizer, accelerator)
        if recipe.train.steps:
            shard_blocks(accelerator, recognizer)
        optimizer = build_optimizer(recognizer, recipe)
        self.tracking = Tracking(recipe, run, accelerator, quiet)
        self._plateau = Plateau(recipe.episode.n_way)
        progress = self.main and not quiet
        self._validation = training.validation(recognizer, accelerator, progress)
        tasks_hash, only_step = self._validation.tasks_hash, self._validation.only_step
        self._validate_every = recipe.train.validate_every if only_step is None else max(1, only_step)
        self.state = TrainingState(recipe, run, recognizer, optimizer, accelerator, tasks_hash, only_step)
        self.progress, self.selection = self.state.progress, self.state.selection
        self._data = TrainingData(recipe, catalog.split("train"), recognizer.encoder.image_size)
        self._step = TrainingStep(recipe, recognizer, accelerator, stop, self.state)

    def prepare(self, resume: bool) -> None:
        """Prepare model and optimizer with Accelerate, and load the newest checkpoint if the run is resumed."""
        train, state = self.recipe.train, self.state
        if self.main:
            state.clean_up()
        self.accelerator.wait_for_everyone()
        state.two_pass = make_two_pass(self.recipe, self.recognizer, self.accelerator)
        if train.compile:
            compile_blocks(self.recognizer)
        if train.steps:
            with optimizer_follows(self.accelerator, state.optimizer, self.recognizer):
                prepared = self.accelerator.prepare(self.recognizer, state.optimizer)
            self._step.model, self._step.optimizer = prepared
        state.average = MovingAverage(self.recognizer, train.ema) if train.ema else None
        self._step.remember_start()
        if resume:
            last_validation = state.restore()
            if self.main:
                with writing(self.run.folder):
                    entries = self.run.rewind_log(self.progress.step, last_validation)
                self._plateau.losses = [
                    entry["losses"]["cross_entropy"] for entry in entries if "cross_entropy" in entry.get("losses", {})
                ]
            logger.info("resumed at step %d", self.progress.step)
            self._check_last_step()
        if train.measure_head_norms and self.recipe.backbone.freeze_batch_norm and not self.progress.step:
            measure_head_norms(self.recognizer, self._data.task(0).to(self.accelerator.device))
        self._step.schedule = build_schedule(state.optimizer, train, done=self.progress.step)

    def fit(self) -> None:
        """Train the remaining steps. The run folder then has the weights of the best validation."""
        train, accelerator, progress = self.recipe.train, self.accelerator, self.progress
        with self.tracking, self.stop.noting():
            self.tracking.start(progress.step)
            if self.state.is_under_deepspeed:
                logger.info("The optimizer's state is not saved under DeepSpeed: this run cannot be resumed")
            if self._validates_start and self.selection.best is None and not progress.step:
                self.validate()
            self._validate_where_due()
            if self._is_over():
                return
            rank, world = accelerator.process_index, accelerator.num_processes
            batches = self._data.steps(progress.step, rank, world, pin_memory=accelerator.device.type == "cuda")
            requested_at = time.perf_counter()
            for episodes in batches:
                received_at = time.perf_counter()
                stopping = self._train_step(episodes)
                finished_at = time.perf_counter()
                progress.data_seconds += received_at - requested_at
                progress.seconds += finished_at - received_at
                if stopping or self._is_due(train.checkpoint_every) or self._is_due(self._validate_every):
                    self.checkpoint()
                if stopping:
                    self._leave()
                self._validate_where_due()
                if self._is_over():
                    break
                requested_at = time.perf_counter()
        if self.state.bad_losses.total:
            logger.info("%d of %d steps were skipped because of a bad loss", self.state.bad_losses.total, progress.step)
        self._data.report_skipped()
        self._validation.report_skipped()

    def release(self) -> None:
        """Release DDP while the process group still exists, to avoid a deadlock at exit.

        The last owner of a gloo group waits for its thread. DDP would do this while it holds the GIL. The thread may
        need the GIL to free the tensors of the last exchange, so the process would never end.
        """
        self._step.model = self.recognizer
        self.accelerator.free_memory()
        gc.collect()

    def validate(self) -> None:
        """Measure the accuracy on the validation classes, and save the weights if it is the best so far."""
        if self.state.average is None:
            self._validate()
        else:
            with self.state.average.in_place():
                self._validate()

    def checkpoint(self) -> None:
        """Save everything that resuming needs. Every process must call this."""
        if not self.state.is_doubtful:
            self.state.save()

    @contextmanager
    def explained_end(self) -> Iterator[None]:
        """Add what is saved to a signal or Ctrl-C, and a remedy to an out-of-memory error."""
        try:
            yield
        except Preempted as preempted:
            logger.info("%s: %s", preempted.name, self._what_is_saved())
            raise
        except KeyboardInterrupt as interruption:
            raise KeyboardInterrupt(self._what_is_saved()) from interruption
        except torch.OutOfMemoryError as error:
            raise DmgalError(
                "The device is out of memory.",
                received=first_line(error),
                expected="memory for the activations of one pass, in addition to weights and optimizer state",
                remedy="Use --train.tasks-per-pass 1, --train.precision bf16, --backbone.checkpoint-blocks, "
                "or --train.two-pass auto, which needs the least memory.",
            ) from error

    def _what_is_saved(self) -> str:
        """Describe from which step the run would resume if it ended now."""
        return f"{self.state.describe_saved()} ({self.run.folder})"

    def _train_step(self, episodes: list[Episode]) -> bool:
        """Run a training step and return True if any process was asked to stop."""
        start = time.perf_counter()
        result = self._step.run(episodes)
        if result.problem is None:
            self._log_step(result, time.perf_counter() - start)
        else:
            step, most = self.progress.step, self.recipe.train.max_bad_losses
            self.tracking.bad_step(step, result.problem, self.state.bad_losses.in_row, most)
            self.state.bad_losses.check(result.problem, step)
        return result.stopping

    def _log_step(self, result: StepResult, seconds: float) -> None:
        means = result.means
        losses = {name: value for name, value in means.items() if name not in ("loss", "accuracy")}
        entry: dict[str, object] = {"loss": means["loss"], "losses": losses, "accuracy": means["accuracy"]}
        if math.isfinite(result.gradient_norm):
            entry["gradient_norm"] = result.gradient_norm
        else:
            entry["overflow"] = True  # of fp16; the scaler lowers the loss scale
        entry["learning_rate"] = result.learning_rate
        progress = self.progress
        self.tracking.step(progress.step, entry, progress.seconds + seconds, progress.data_seconds)
        if notice := self._plateau.notice(progress.step, losses["cross_entropy"]):
            logger.info(notice)

    def _validate_where_due(self) -> None:
        """Validate if it is due, also on resuming after a kill during a validation."""
        due = self._is_due(self._validate_every) and self.selection.step < self.progress.step
        if due and not self.state.is_doubtful:
            self.validate()

    def _validate(self) -> None:
        alike_everywhere(self.recognizer)
        with self.stop.ending():  # everything is saved, and a validation may take a long time
            accuracies = self._validation.accuracies(self.progress.step)
        step = self.progress.step
        better, line = self.selection.take(step, accuracies)
        weights = best_state(self.recognizer) if better else {}  # every process takes part
        self.tracking.validation(step, Estimate.of(accuracies.tasks))  # first: a later kill only repeats the validation
        if self.main:
            with writing(self.run.folder):
                if better:
                    save_best(self.recognizer, weights, self.run)
                self.state.amend()
        logger.info(line)

    def _is_due(self, every: int) -> bool:
        step = self.progress.step
        return step > 0 and (step % every == 0 or step == self.state.last_step)

    def _is_over(self) -> bool:
        """Return True after the last step, or if validation has not improved for too long."""
        train, step, since_best = self.recipe.train, self.progress.step, self.selection.since_best
        if step >= self.state.last_step:
            return True
        if train.patience is None or since_best < train.patience:
            return False
        logger.info("stopped early at step %d: no better validation in the last %d", step, since_best)
        return True

    @property
    def _validates_start(self) -> bool:
        """True if the weights before the first step are a candidate: those of a trained adapter."""
        return self.recipe.is_continued and self._validation.only_step in (None, 0)

    def _check_last_step(self) -> None:
        if self._validation.only_step is not None and self.progress.step > self.state.last_step:
            raise DmgalError(
                "This run has been trained beyond its last step.",
                received=f"a checkpoint of step {self.progress.step}. Its folds now choose step {self.state.last_step}",
                expected="a checkpoint that is not newer than the chosen step",
                remedy="Pass another --out.",
            )

    def _leave(self) -> None:
        self.accelerator.wait_for_everyone()  # until the checkpoint is written
        raise Preempted(self.stop.requested or "a signal to another process")


def remember_frames(recognizer: FewShotRecognizer, num_bytes: float) -> None:
    """Let frozen blocks run only once for each frame (see `FrameMemory`).

    Raises:
        DmgalError: the frames go through several backbones.
    """
    encoder: Any = recognizer.encoder
    if not isinstance(encoder, FrameEncoder):
        raise DmgalError(
            "Only the frames of a single backbone can be remembered.",
            received="train.frame_memory with a motion expert beside the backbone",
            expected="a recipe without backbone.expert",
            remedy="Remove train.frame_memory. Nothing is trained beside a motion expert.",
        )
    encoder.frame_memory = memory = FrameMemory(encoder, num_bytes)
    logger.info("frames are remembered after %d of %d blocks", memory.block, encoder.spec.num_blocks)
