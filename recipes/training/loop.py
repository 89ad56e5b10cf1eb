"""The training loop: steps, validations, checkpoints, and how a run that was stopped goes on.

Episodes, augmentation, dropout and schedule are functions of the seed and the step. So a checkpoint holds what is
trained, the optimizer's moments, the loss scale, the best so far and the step; nothing else is needed to go on to the
same bits.
"""

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

from dmgal.episodes import Episode, Estimate, FewShotRecognizer, VideoCatalog
from dmgal.episodes.sampler import hashed_seed
from dmgal.errors import DmgalError
from dmgal.recipes.build import count_parameters, freeze_batch_norm
from dmgal.recipes.config import Recipe
from dmgal.recipes.runs import Run, writing
from dmgal.recipes.saving.checkpoints import Checkpoint, Checkpoints
from dmgal.recipes.saving.weights import (
    best_state,
    clean_up_best,
    load_optimizer_state,
    load_trained_state,
    optimizer_state,
    save_best,
    trained_state,
)
from dmgal.recipes.training.averaging import MovingAverage
from dmgal.recipes.training.bad_losses import BadLosses
from dmgal.recipes.training.fsdp import divide_blocks, optimizer_follows, placed_like, whole
from dmgal.recipes.training.head_norms import measure_head_norms
from dmgal.recipes.training.optimization import Plateau, build_optimizer, build_schedule, loss_weights
from dmgal.recipes.training.passes import Numbers, step_gradient
from dmgal.recipes.training.precision import compile_blocks, set_precision
from dmgal.recipes.training.sharding import alike_everywhere
from dmgal.recipes.training.signals import Preempted, StopSignal
from dmgal.recipes.training.tracking import Tracking
from dmgal.recipes.training.training_data import TrainingData
from dmgal.recipes.training.two_passes import make_two_pass, two_pass_gradient
from dmgal.recipes.training.validation import Selection, Validation

SMALLEST_SCALE = 1.0
"""Of the loss in fp16: a gradient that overflows at this scale or below counts as bad."""


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0


class Trainer:
    """The state of one training run; ``dmgal.recipes.train.run`` puts it together."""

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
        """Hands model and optimizer to Accelerate, and takes up the newest checkpoint where one is to be resumed."""
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
        """All that remains; the best weights of the validation are in the run folder afterwards."""
        train, accelerator, progress = self.recipe.train, self.accelerator, self.progress
        with self.tracking, self.stop.noting():
            self.tracking.start(progress.step)
            if self._under_deepspeed:
                self.tracking.say("DeepSpeed keeps the state of the optimizer to itself: this run cannot be resumed")
            self._validate_where_due()
            if self._is_over():
                return
            rank, world = accelerator.process_index, accelerator.num_processes
            batches = self._data.steps(progress.step, rank, world, pin_memory=accelerator.device.type == "cuda")
            asked = time.perf_counter()
            for episodes in batches:
                came = time.perf_counter()
                stopping = self._train_step(episodes)
                done = time.perf_counter()
                progress.data_seconds += came - asked
                progress.seconds += done - came
                if stopping or self._is_due(train.checkpoint_every) or self._is_due(train.validate_every):
                    self.checkpoint()
                if stopping:
                    self._leave()
                self._validate_where_due()
                if self._is_over():
                    break
                asked = time.perf_counter()
        if self.bad_losses.total:
            self.tracking.say(f"{self.bad_losses.total} of {progress.step} steps were left out for a bad loss")
        self._data.tell_skipped()
        self._validation.tell_skipped()

    def release(self) -> None:
        """Lets go of DDP while the process group still lives.

        Whoever is the last to let go of a gloo group waits for its thread. DDP does so with Python's lock in its hands,
        for which that thread may wait to drop the tensors of the last exchange: the process would never end.
        """
        self._model = self.recognizer
        self.accelerator.free_memory()
        gc.collect()

    def validate(self) -> None:
        """Accuracy on validation classes; better weights are saved."""
        if self.average is None:
            self._validate()
        else:
            with self.average.in_place():
                self._validate()

    def checkpoint(self) -> None:
        """Everything that resuming needs; every process must take part."""
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
        """From where a run goes on that ends now."""
        if self._under_deepspeed:
            return "this run cannot be resumed"
        if self._saved is None:
            return "nothing is saved yet, and the same command with --resume begins again"
        return f"saved at step {self._saved}, from where the same command with --resume goes on"

    def _train_step(self, episodes: list[Episode]) -> bool:
        """One step of the optimizer; whether the run was asked to stop, which all processes answer alike."""
        train, accelerator, step = self.recipe.train, self.accelerator, self.progress.step
        start = time.perf_counter()
        self._model.train()
        if self.recipe.backbone.freeze_batch_norm:
            freeze_batch_norm(self.recognizer)
        here = [episode.to(accelerator.device, non_blocking=True) for episode in episodes]
        self._stepper.zero_grad(set_to_none=True)
        seed = hashed_seed(train.seed, step, "step")  # alike on all processes, and when resumed
        if self._two_pass is None:
            numbers = step_gradient(accelerator, self._model, here, self._weights, seed, train.tasks_per_pass)
        else:
            numbers = two_pass_gradient(accelerator, self._two_pass, here, self._weights, seed)
        norm = self._clipped_norm()
        means, stopping = self._over_processes(numbers)
        self.progress.step = step + 1
        scaler = accelerator.scaler
        # the scaler leaves out a step by itself and halves its scale; where that is small, the gradient itself is bad
        may_overflow = scaler is not None and scaler.get_scale() > SMALLEST_SCALE
        problem = self.bad_losses.verdict(means["loss"], 0.0 if may_overflow else norm)
        if problem is None:
            self._stepper.step()
            if self.average is not None and not self._stepper.step_was_skipped:
                self.average.update()
        elif scaler is not None:
            scaler.update()  # it has seen this gradient, and would refuse the next one
        rate = float(self.schedule.get_last_lr()[0])
        self.schedule.step()
        if problem is not None:
            self.tracking.bad_step(step + 1, problem, self.bad_losses.in_row, train.max_bad_losses)
            self.bad_losses.check(problem, step + 1)
        else:
            self._report(means, norm, rate, time.perf_counter() - start)
        return stopping

    def _over_processes(self, numbers: Numbers) -> tuple[dict[str, float], bool]:
        """Means over all processes, and whether any of them was asked to stop: one exchange a step."""
        exact = torch.float32 if self.accelerator.device.type == "mps" else torch.float64  # which mps has not
        mine = torch.stack([value.to(exact) for value in numbers.values()])
        asked = mine.new_tensor([float(self.stop.requested is not None)])
        *means, stopping = self.accelerator.reduce(torch.cat([mine, asked]), "mean").tolist()
        return dict(zip(numbers, means, strict=True)), stopping > 0

    def _clipped_norm(self) -> float:
        """Clips the gradient; its length before."""
        longest = math.inf if self.recipe.train.clip_norm is None else self.recipe.train.clip_norm
        every = list(self.recognizer.parameters())  # under FSDP Accelerate knows a model by all of them
        norm: Tensor | None = self.accelerator.clip_grad_norm_(every, longest)
        return 0.0 if norm is None else float(whole(norm))  # DeepSpeed clips by itself

    def _report(self, means: dict[str, float], norm: float, rate: float, seconds: float) -> None:
        losses = {name: value for name, value in means.items() if name not in ("loss", "accuracy")}
        entry: dict[str, Any] = {"loss": means["loss"], "losses": losses, "accuracy": means["accuracy"]}
        if math.isfinite(norm):
            entry["gradient_norm"] = norm
        else:
            entry["overflow"] = True  # of fp16; the scale of the loss goes down
        entry["learning_rate"] = rate
        progress = self.progress
        self.tracking.step(progress.step, entry, progress.seconds + seconds, progress.data_seconds)
        if notice := self._plateau.notice(progress.step, losses["cross_entropy"]):
            self.tracking.say(notice)

    def _validate_where_due(self) -> None:
        """Also one that a kill cut short, when a run is resumed."""
        step = self.progress.step
        due = self._is_due(self.recipe.train.validate_every) and self.selection.step < step
        if due and not self._is_doubtful:
            self.validate()

    def _validate(self) -> None:
        alike_everywhere(self.recognizer)
        with self.stop.ending():  # everything is saved, and a validation may take long
            accuracies = self._validation.accuracies()
        step = self.progress.step
        better, line = self.selection.take(step, accuracies)
        state = best_state(self.recognizer) if better else {}  # every process takes part
        self.tracking.validation(step, Estimate.of(accuracies))  # first: a kill behind it only repeats the validation
        if self.main:
            with writing(self.run.folder):
                if better:
                    save_best(self.recognizer, state, self.run)
                if step:
                    self._checkpoints.amend(step, self._saved_progress())
        self.tracking.say(line)

    @property
    def _is_doubtful(self) -> bool:
        """In a row of bad steps the weights may be at fault: they are not saved, unless the training ends with them."""
        return self.bad_losses.in_row > 0 and self.progress.step < self.recipe.train.steps

    def _is_due(self, every: int) -> bool:
        step = self.progress.step
        return step > 0 and (step % every == 0 or step == self.recipe.train.steps)

    def _is_over(self) -> bool:
        """The last step is done, or validation has not become better for too long."""
        train, waited = self.recipe.train, self.selection.since_best
        if self.progress.step >= train.steps:
            return True
        if train.patience is None or waited < train.patience:
            return False
        self.tracking.say(f"stopped early at step {self.progress.step}: no better validation in the last {waited}")
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
        found, validated = self._checkpoints.newest(), -1
        if found is not None:
            if self._under_deepspeed or "optimizer" not in found.tensors:
                raise _cannot_resume(found)
            load_trained_state(self.recognizer, found.tensors["model"], found.folder)
            before, now = found.progress["optimizer"], self.recipe.train.optimizer
            if before == now:
                load_optimizer_state(self.optimizer, self.recognizer, found.tensors["optimizer"])
            else:
                self.tracking.say(f"what {before} remembers is of no use to {now}, which begins anew")
            if self.average is not None:
                average = found.tensors.get("average", found.tensors["model"])
                self.average.load(placed_like(average, self.average.values))
            self.progress = Progress(**found.progress["progress"])
            self._saved = self.progress.step
            selection = Selection(**found.progress["selection"])
            validated = selection.step
            if selection.tasks in ("", self.selection.tasks):
                self.selection = replace(selection, tasks=self.selection.tasks)
            else:
                self.tracking.say("the tasks of the validation are others now: the best weights are chosen anew")
            for name, value in found.progress["bad_losses"].items():
                setattr(self.bad_losses, name, value)
            if self.accelerator.scaler is not None and found.progress["loss_scale"]:
                self.accelerator.scaler.load_state_dict(found.progress["loss_scale"])
            if self._two_pass is not None:
                self._two_pass.take_up(found.progress.get("two_pass"))
        self._check_shared_folder()
        if self.main:
            with writing(self.run.folder):
                kept = self.run.rewind_log(self.progress.step, validated)
            self._plateau.losses = [entry["losses"]["cross_entropy"] for entry in kept if "losses" in entry]
        self.tracking.say(f"resumed at step {self.progress.step}")

    @property
    def _under_deepspeed(self) -> bool:
        """Its optimizers hold parts of its own making, whose states belong to no parameter of the model."""
        return bool(self.accelerator.distributed_type == DistributedType.DEEPSPEED)

    def _check_shared_folder(self) -> None:
        """Every process reads the checkpoint itself, so all must see the same folder."""
        steps = self.accelerator.gather(torch.tensor([self.progress.step], device=self.accelerator.device)).tolist()
        if len(set(steps)) > 1:
            raise DmgalError(
                "The processes do not see the same run folder.",
                received=f"newest checkpoints at the steps {sorted(set(steps))}",
                expected="one folder that all machines share",
                remedy="put --out on a shared disk",
            )


def _check_division(tasks: int, world: int) -> None:
    if tasks % world:
        raise DmgalError(
            "The tasks of a step do not divide among the processes.",
            received=f"tasks_per_step={tasks}, {world} processes",
            expected="a multiple of the number of processes",
            remedy=f"pass --train.tasks-per-step {math.ceil(tasks / world) * world}",
        )


def _check_something_trains(recipe: Recipe, recognizer: FewShotRecognizer) -> None:
    if recipe.train.steps and not count_parameters(recognizer, trained_only=True):
        raise DmgalError(
            "There is nothing to train.",
            received=f"train.steps={recipe.train.steps}, a frozen backbone, no adapter, a head that learns nothing",
            expected="an adapter, a trainable backbone or a head that learns; or no steps",
            remedy="add a method such as method/dmgal_adapter, or pass --train.steps 0",
        )


def _cannot_resume(found: Checkpoint) -> DmgalError:
    without = "" if "optimizer" in found.tensors else ", without the state of its optimizer, as DeepSpeed's are"
    return DmgalError(
        "Under DeepSpeed a run cannot be resumed, nor can one that began there.",
        received=f"--resume of {found.folder}{without}",
        expected="a run that DDP, FSDP or one process has begun and goes on with",
        remedy="train from the beginning; where it may be stopped with recipes/configs/launch/fsdp.yaml",
    )
