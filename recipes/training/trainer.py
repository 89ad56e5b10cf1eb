"""Training loop: steps, validations, checkpoints, and resuming a run that was stopped.

Episodes, augmentation, dropout and schedule are functions of the seed and the step. So a checkpoint holds the trained
parameters, the optimizer's moments, the loss scale, the best validation and the step, which resumes bit-identically."""

from __future__ import annotations

import gc
import math
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from dmgal.episodes import Episode, FewShotRecognizer
from dmgal.episodes.evaluation import Estimate
from dmgal.errors import DmgalError
from dmgal.recipes.run.build import count_parameters, freeze_batch_norm
from dmgal.recipes.run.checkpoints import Checkpoint, Checkpoints
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.distributed import alike_everywhere
from dmgal.recipes.run.folder import Run, writing
from dmgal.recipes.run.weights import (
    best_state,
    clean_up_best,
    load_optimizer_state,
    load_trained_state,
    optimizer_state,
    placed_like,
    save_best,
    trained_state,
    whole,
)
from dmgal.recipes.training.fsdp import divide_blocks, optimizer_follows
from dmgal.recipes.training.launching import compile_blocks, set_precision
from dmgal.recipes.training.optimization import MovingAverage, Plateau, build_optimizer, build_schedule, loss_weights
from dmgal.recipes.training.signals import Preempted, StopSignal
from dmgal.recipes.training.step import (
    BadLosses,
    Numbers,
    make_two_pass,
    measure_head_norms,
    step_gradient,
    two_pass_gradient,
)
from dmgal.recipes.training.tracking import Tracking
from dmgal.recipes.training.training_data import TrainingData
from dmgal.recipes.training.validation import Selection, Validation
from dmgal.videos import VideoCatalog
from dmgal.videos.decoding.clip import hashed_seed

SMALLEST_SCALE = 1.0
"""Loss scale of fp16 at or below which an overflowing gradient counts as bad."""


@dataclass
class Progress:
    """Number of finished steps, and the time they took."""

    step: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0


class Trainer:
    """State of one training run, created by ``dmgal.recipes.train.run``."""

    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        recognizer: FewShotRecognizer,
        catalog: VideoCatalog,
        accelerator: Accelerator,
        stop: StopSignal,
        quiet: bool,
    ) -> None:
        self.recipe, self.run, self.accelerator, self.stop = recipe, run, accelerator, stop
        self.main = accelerator.is_main_process
        self.recognizer = recognizer
        train = recipe.train
        _check_division(train.tasks_per_step, accelerator.num_processes)
        _check_something_trains(recipe, recognizer)
        set_precision(recipe, recognizer, accelerator)
        if train.steps:
            divide_blocks(accelerator, recognizer)
        self._weights = loss_weights(recognizer.head, train.loss_weights)
        self.optimizer = build_optimizer(recognizer, recipe)
        self.progress = Progress()
        self._saved: int | None = None
        self.bad_losses = BadLosses(train, math.log(recipe.episode.n_way))
        self.tracking = Tracking(recipe, run, accelerator, quiet)
        self._checkpoints = Checkpoints(run.checkpoints, train.keep_checkpoints)
        self._plateau = Plateau(recipe.episode.n_way)
        self._validation = Validation(
            recipe, catalog.split("val"), recognizer, accelerator, progress=self.main and not quiet
        )
        self.selection = Selection(tasks=self._validation.tasks_hash)
        self._data = TrainingData(recipe, catalog.split("train"), recognizer.encoder.image_size[0])
        self._model: nn.Module = recognizer

    def prepare(self, resume: bool) -> None:
        """Prepare model and optimizer with Accelerate, and load the newest checkpoint if the run is resumed."""
        train = self.recipe.train
        if self.main:
            with writing(self.run.folder):
                clean_up_best(self.run)
                self._checkpoints.clean_up()
        self.accelerator.wait_for_everyone()
        self._two_pass = make_two_pass(self.recipe, self.recognizer, self.accelerator, self.tracking.say)
        if train.compile:
            compile_blocks(self.recognizer)
        if train.steps:
            with optimizer_follows(self.accelerator, self.optimizer, self.recognizer):
                self._model, self._stepper = self.accelerator.prepare(self.recognizer, self.optimizer)
        self.average = MovingAverage(self.recognizer, train.ema) if train.ema else None
        if resume:
            self._restore()
        if train.measure_head_norms and self.recipe.backbone.freeze_batch_norm and not self.progress.step:
            measure_head_norms(self.recognizer, self._data.task(0).to(self.accelerator.device))
        self.schedule = build_schedule(self.optimizer, train, done=self.progress.step)

    def fit(self) -> None:
        """Train the remaining steps. The run folder then has the weights of the best validation."""
        train, accelerator, progress = self.recipe.train, self.accelerator, self.progress
        with self.tracking, self.stop.noting():
            self.tracking.start(progress.step)
            if self._under_deepspeed:
                self.tracking.say("The optimizer's state is not saved under DeepSpeed: this run cannot be resumed")
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
                if stopping or self._is_due(train.checkpoint_every) or self._is_due(train.validate_every):
                    self.checkpoint()
                if stopping:
                    self._leave()
                self._validate_where_due()
                if self._is_over():
                    break
                requested_at = time.perf_counter()
        if self.bad_losses.total:
            self.tracking.say(f"{self.bad_losses.total} of {progress.step} steps were skipped because of a bad loss")
        self._data.tell_skipped()
        self._validation.tell_skipped()

    def release(self) -> None:
        """Release DDP while the process group still exists, to avoid a deadlock at exit.

        The last owner of a gloo group waits for its thread. DDP would do this while it holds the GIL. The thread may
        need the GIL to free the tensors of the last exchange, so the process would never end.
        """
        self._model = self.recognizer
        self.accelerator.free_memory()
        gc.collect()

    def validate(self) -> None:
        """Measure the accuracy on the validation classes, and save the weights if it is the best so far."""
        if self.average is None:
            self._validate()
        else:
            with self.average.in_place():
                self._validate()

    def checkpoint(self) -> None:
        """Save everything that resuming needs. Every process must call this."""
        if self._is_doubtful:
            return
        tensors = {"model": trained_state(self.recognizer)}
        if not self._under_deepspeed:
            tensors["optimizer"] = optimizer_state(self.optimizer, self.recognizer)
        if self.average is not None:
            tensors["average"] = {name: whole(value) for name, value in self.average.values.items()}
        if self.main:
            with writing(self.run.folder):
                self._checkpoints.save(self.progress.step, tensors, self._saved_progress())
        self._saved = self.progress.step

    def what_is_saved(self) -> str:
        """Describe from which step the run would resume if it ended now."""
        if self._under_deepspeed:
            return "this run cannot be resumed"
        if self._saved is None:
            return "nothing is saved yet, and the same command with --resume starts from the beginning"
        return f"saved at step {self._saved}, from where the same command with --resume continues"

    def _train_step(self, episodes: list[Episode]) -> bool:
        """Run a training step and return True if any process was asked to stop."""
        train, accelerator, step = self.recipe.train, self.accelerator, self.progress.step
        start = time.perf_counter()
        self._model.train()
        if self.recipe.backbone.freeze_batch_norm:
            freeze_batch_norm(self.recognizer)
        local_episodes = [episode.to(accelerator.device, non_blocking=True) for episode in episodes]
        self._stepper.zero_grad(set_to_none=True)
        seed = hashed_seed(train.seed, step, "step")  # the same on all processes and after resuming
        if self._two_pass is None:
            numbers = step_gradient(accelerator, self._model, local_episodes, self._weights, seed, train.tasks_per_pass)
        else:
            numbers = two_pass_gradient(accelerator, self._two_pass, local_episodes, self._weights, seed)
        norm = self._clipped_norm()
        means, stopping = self._over_processes(numbers)
        self.progress.step = step + 1
        scaler = accelerator.scaler
        # on overflow the scaler skips the step and halves its scale; at a small scale the gradient itself is bad
        may_overflow = scaler is not None and scaler.get_scale() > SMALLEST_SCALE
        problem = self.bad_losses.verdict(means["loss"], 0.0 if may_overflow else norm)
        if problem is None:
            self._stepper.step()
            if self.average is not None and not self._stepper.step_was_skipped:
                self.average.update()
        elif scaler is not None:
            scaler.update()  # it has unscaled this gradient, and would reject the next one
        rate = float(self.schedule.get_last_lr()[0])
        self.schedule.step()
        if problem is not None:
            self.tracking.bad_step(step + 1, problem, self.bad_losses.in_row, train.max_bad_losses)
            self.bad_losses.check(problem, step + 1)
        else:
            self._report(means, norm, rate, time.perf_counter() - start)
        return stopping

    def _over_processes(self, numbers: Numbers) -> tuple[dict[str, float], bool]:
        """Return means over all processes and whether any was asked to stop, with one exchange per step."""
        exact = torch.float32 if self.accelerator.device.type == "mps" else torch.float64  # mps has no float64
        local_means = torch.stack([value.to(exact) for value in numbers.values()])
        stop_requested = local_means.new_tensor([float(self.stop.requested is not None)])
        *means, stopping = self.accelerator.reduce(torch.cat([local_means, stop_requested]), "mean").tolist()
        return dict(zip(numbers, means, strict=True)), stopping > 0

    def _clipped_norm(self) -> float:
        """Clip the gradient and return its norm before clipping."""
        max_norm = math.inf if self.recipe.train.clip_norm is None else self.recipe.train.clip_norm
        parameters = list(self.recognizer.parameters())  # under FSDP Accelerate identifies a model by all of them
        norm: Tensor | None = self.accelerator.clip_grad_norm_(parameters, max_norm)
        return 0.0 if norm is None else float(whole(norm))  # DeepSpeed clips by itself

    def _report(self, means: dict[str, float], norm: float, rate: float, seconds: float) -> None:
        losses = {name: value for name, value in means.items() if name not in ("loss", "accuracy")}
        entry: dict[str, Any] = {"loss": means["loss"], "losses": losses, "accuracy": means["accuracy"]}
        if math.isfinite(norm):
            entry["gradient_norm"] = norm
        else:
            entry["overflow"] = True  # of fp16; the scaler lowers the loss scale
        entry["learning_rate"] = rate
        progress = self.progress
        self.tracking.step(progress.step, entry, progress.seconds + seconds, progress.data_seconds)
        if notice := self._plateau.notice(progress.step, losses["cross_entropy"]):
            self.tracking.say(notice)

    def _validate_where_due(self) -> None:
        """Validate if it is due, also on resuming after a kill during a validation."""
        step = self.progress.step
        due = self._is_due(self.recipe.train.validate_every) and self.selection.step < step
        if due and not self._is_doubtful:
            self.validate()

    def _validate(self) -> None:
        alike_everywhere(self.recognizer)
        with self.stop.ending():  # everything is saved, and a validation may take a long time
            accuracies = self._validation.accuracies()
        step = self.progress.step
        better, line = self.selection.take(step, accuracies)
        state = best_state(self.recognizer) if better else {}  # every process takes part
        self.tracking.validation(step, Estimate.of(accuracies))  # first: a later kill only repeats the validation
        if self.main:
            with writing(self.run.folder):
                if better:
                    save_best(self.recognizer, state, self.run)
                if step:
                    self._checkpoints.amend(step, self._saved_progress())
        self.tracking.say(line)

    @property
    def _is_doubtful(self) -> bool:
        """True after a bad step before the last one. The weights may be the cause, so they are not saved."""
        return self.bad_losses.in_row > 0 and self.progress.step < self.recipe.train.steps

    def _is_due(self, every: int) -> bool:
        step = self.progress.step
        return step > 0 and (step % every == 0 or step == self.recipe.train.steps)

    def _is_over(self) -> bool:
        """Return True after the last step, or if validation has not improved for too long."""
        train, since_best = self.recipe.train, self.selection.since_best
        if self.progress.step >= train.steps:
            return True
        if train.patience is None or since_best < train.patience:
            return False
        self.tracking.say(f"stopped early at step {self.progress.step}: no better validation in the last {since_best}")
        return True

    def _leave(self) -> None:
        self.accelerator.wait_for_everyone()  # until the checkpoint is written
        raise Preempted(self.stop.requested or "a signal to another process")

    def _saved_progress(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        bad = {name: getattr(self.bad_losses, name) for name in ("in_row", "total", "recent")}
        return {
            "progress": asdict(self.progress),
            "selection": asdict(self.selection),
            "bad_losses": bad,
            "optimizer": self.recipe.train.optimizer,
            "loss_scale": scaler.state_dict() if scaler is not None else None,
            "two_pass": self._two_pass.choice if self._two_pass is not None else None,
        }

    def _restore(self) -> None:
        checkpoint, last_validation = self._checkpoints.newest(), -1
        if checkpoint is not None:
            if self._under_deepspeed or "optimizer" not in checkpoint.tensors:
                raise _cannot_resume(checkpoint)
            load_trained_state(self.recognizer, checkpoint.tensors["model"], checkpoint.folder)
            old_optimizer, optimizer = checkpoint.progress["optimizer"], self.recipe.train.optimizer
            if old_optimizer == optimizer:
                load_optimizer_state(self.optimizer, self.recognizer, checkpoint.tensors["optimizer"])
            else:
                self.tracking.say(f"{optimizer} cannot use the saved state of {old_optimizer} and starts without state")
            if self.average is not None:
                average = checkpoint.tensors.get("average", checkpoint.tensors["model"])
                self.average.load(placed_like(average, self.average.values))
            self.progress = Progress(**checkpoint.progress["progress"])
            self._saved = self.progress.step
            selection = Selection(**checkpoint.progress["selection"])
            last_validation = selection.step
            if selection.tasks in ("", self.selection.tasks):
                self.selection = replace(selection, tasks=self.selection.tasks)
            else:
                self.tracking.say("the validation tasks have changed, so the best weights are selected again")
            for name, value in checkpoint.progress["bad_losses"].items():
                setattr(self.bad_losses, name, value)
            if self.accelerator.scaler is not None and checkpoint.progress["loss_scale"]:
                self.accelerator.scaler.load_state_dict(checkpoint.progress["loss_scale"])
            if self._two_pass is not None:
                self._two_pass.take_up(checkpoint.progress.get("two_pass"))
        self._check_shared_folder()
        if self.main:
            with writing(self.run.folder):
                entries = self.run.rewind_log(self.progress.step, last_validation)
            self._plateau.losses = [entry["losses"]["cross_entropy"] for entry in entries if "losses" in entry]
        self.tracking.say(f"resumed at step {self.progress.step}")

    @property
    def _under_deepspeed(self) -> bool:
        """True under DeepSpeed. Its optimizers hold flat partitions, whose states match no parameter of the model."""
        return bool(self.accelerator.distributed_type == DistributedType.DEEPSPEED)

    def _check_shared_folder(self) -> None:
        """Raise an error if processes, each of which reads the checkpoint itself, see different folders."""
        steps = self.accelerator.gather(torch.tensor([self.progress.step], device=self.accelerator.device)).tolist()
        if len(set(steps)) > 1:
            raise DmgalError(
                "The processes do not see the same run folder.",
                received=f"newest checkpoints at steps {sorted(set(steps))}",
                expected="one folder that all machines share",
                remedy="Put --out on a shared disk.",
            )


def _check_division(tasks: int, world: int) -> None:
    if tasks % world:
        raise DmgalError(
            "The tasks of a step cannot be divided evenly among the processes.",
            received=f"tasks_per_step={tasks}, {world} processes",
            expected="a multiple of the number of processes",
            remedy=f"Pass --train.tasks-per-step {math.ceil(tasks / world) * world}.",
        )


def _check_something_trains(recipe: Recipe, recognizer: FewShotRecognizer) -> None:
    if recipe.train.steps and not count_parameters(recognizer, trained_only=True):
        raise DmgalError(
            "There is nothing to train.",
            received=f"train.steps={recipe.train.steps}, a frozen backbone, no adapter, and a head without parameters",
            expected="an adapter, a trainable backbone, a head with parameters, or no steps",
            remedy="Add a method such as method/dmgal_adapter, or pass --train.steps 0.",
        )


def _cannot_resume(checkpoint: Checkpoint) -> DmgalError:
    missing = "" if "optimizer" in checkpoint.tensors else ", without the state of its optimizer, as under DeepSpeed"
    return DmgalError(
        "A run cannot be resumed under DeepSpeed, or if it started there.",
        received=f"--resume of {checkpoint.folder}{missing}",
        expected="a run that starts and resumes with DDP, FSDP or one process",
        remedy="Train from the beginning. Use recipes/configs/launch/fsdp.yaml if the run may be stopped.",
    )
