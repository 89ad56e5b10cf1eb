"""One training step: a few tasks at a time or in two passes (see `TwoPass`), gradients averaged over all tasks.

Random numbers in the model (dropout) are the same for every task of a step, so the result depends neither on the number
of processes nor on the number of tasks in a pass. Frozen batch norms of a new head are first calibrated on the videos
of the first task: without statistics, the attention of S-MGA starts with a single winner in every row.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LambdaLR

from dmgal.episodes import Episode, FewShotRecognizer
from dmgal.episodes.two_pass.two_pass import TwoPass, average_gradients
from dmgal.errors import DmgalError
from dmgal.recipes.run.build import freeze_batch_norm
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.weights import gather_shards
from dmgal.recipes.training.optimization import loss_weights, task_loss
from dmgal.recipes.training.signals import StopSignal
from dmgal.recipes.training.training_state import TrainingState
from dmgal.videos.decoding.clip import hashed_seed

logger = logging.getLogger(__name__)
SMALLEST_SCALE = 1.0
"""Loss scale of fp16 at or below which an overflowing gradient counts as bad."""
Numbers = dict[str, Tensor]
"""Means over tasks of ``loss``, ``accuracy`` and each loss by name, without gradients."""


@dataclass(frozen=True)
class StepResult:
    """Outcome of one step, the same on all processes.

    Attributes:
        means: means over all tasks of ``loss``, ``accuracy`` and each loss by name.
        gradient_norm: norm of the gradient before clipping.
        learning_rate: learning rate of the first group of parameters.
        problem: reason why the weights did not change, or None.
        stopping: True if any process was asked to stop.
    """

    means: dict[str, float]
    gradient_norm: float
    learning_rate: float
    problem: str | None
    stopping: bool


class TrainingStep:
    """One step: gradient, clipping, and update of weights, moving average and learning rate."""

    schedule: LambdaLR

    def __init__(
        self,
        recipe: Recipe,
        recognizer: FewShotRecognizer,
        accelerator: Accelerator,
        stop: StopSignal,
        state: TrainingState,
    ) -> None:
        self._recipe, self._recognizer, self._accelerator = recipe, recognizer, accelerator
        self._stop, self._state = stop, state
        self._weights = loss_weights(recognizer.head, recipe.train.loss_weights)
        self.model: nn.Module = recognizer
        """The model as prepared by Accelerate."""
        self.optimizer: Any = state.optimizer
        """The optimizer as prepared by Accelerate."""
        self._start: dict[int, Tensor] = {}

    def run(self, episodes: Sequence[Episode]) -> StepResult:
        """Train on this process's tasks of the next step. Every process must call this."""
        train, accelerator, state = self._recipe.train, self._accelerator, self._state
        self.model.train()
        if self._recipe.backbone.freeze_batch_norm:
            freeze_batch_norm(self._recognizer)
        tasks = [episode.to(accelerator.device, non_blocking=True) for episode in episodes]
        self.optimizer.zero_grad(set_to_none=True)
        seed = hashed_seed(train.seed, state.progress.step, "step")  # the same on all processes and after resuming
        if state.two_pass is None:
            numbers = step_gradient(accelerator, self.model, tasks, self._weights, seed, train.tasks_per_pass)
        else:
            numbers = two_pass_gradient(accelerator, state.two_pass, tasks, self._weights, seed)
        norm = self._clip()
        means, stopping = self._over_processes(numbers)
        state.progress.step += 1
        problem = self._update(means["loss"], norm)
        rate = float(self.schedule.get_last_lr()[0])
        self.schedule.step()
        return StepResult(means, norm, rate, problem, stopping)

    def remember_start(self) -> None:
        """Keep the current weights for ``train.pull_to_start``. Call it before a checkpoint is loaded."""
        if self._recipe.train.pull_to_start:
            self._start = {id(p): p.detach().clone() for p in self._recognizer.parameters() if p.requires_grad}

    @torch.no_grad()
    def _pull(self) -> None:
        """Move the weights towards the start, by a share that decays with the learning rate (L2-SP, ICML 2018)."""
        if not self._start or self.optimizer.step_was_skipped:
            return
        for group in self.optimizer.param_groups:
            share = min(group["lr"] * self._recipe.train.pull_to_start, 1.0)
            for parameter in group["params"]:
                parameter.lerp_(self._start[id(parameter)], share)

    def _clip(self) -> float:
        """Clip the gradient and return its norm before clipping."""
        max_norm = math.inf if self._recipe.train.clip_norm is None else self._recipe.train.clip_norm
        parameters = list(self._recognizer.parameters())  # under FSDP Accelerate identifies a model by all of them
        norm: Tensor | None = self._accelerator.clip_grad_norm_(parameters, max_norm)
        return 0.0 if norm is None else float(gather_shards(norm))  # DeepSpeed clips by itself

    def _over_processes(self, numbers: Numbers) -> tuple[dict[str, float], bool]:
        """Return means over all processes and whether any was asked to stop, with one exchange per step."""
        exact = torch.float32 if self._accelerator.device.type == "mps" else torch.float64  # mps has no float64
        local_means = torch.stack([value.to(exact) for value in numbers.values()])
        stop_requested = local_means.new_tensor([float(self._stop.requested is not None)])
        *means, stopping = self._accelerator.reduce(torch.cat([local_means, stop_requested]), "mean").tolist()
        return dict(zip(numbers, means, strict=True)), stopping > 0

    def _update(self, loss: float, norm: float) -> str | None:
        """Update the weights and their average, or return what is wrong with the step."""
        scaler = self._accelerator.scaler
        # on overflow the scaler skips the step and halves its scale; at a small scale the gradient itself is bad
        may_overflow = scaler is not None and scaler.get_scale() > SMALLEST_SCALE
        problem = self._state.bad_losses.verdict(loss, 0.0 if may_overflow else norm)
        if problem is None:
            self.optimizer.step()
            self._pull()
            if self._state.average is not None and not self.optimizer.step_was_skipped:
                self._state.average.update()
        elif scaler is not None:
            scaler.update()  # it has unscaled this gradient, and would reject the next one
        return problem


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def backward_pass(
    accelerator: Accelerator, model: nn.Module, episodes: Sequence[Episode], weights: Mapping[str, float], share: float
) -> Numbers:
    """Add ``share`` times the gradient of some tasks' mean loss to the gradients of the parameters.

    The model, prepared by Accelerate, maps episodes on its device to their `EpisodeOutput`. ``share`` is the fraction
    of this process's tasks in the step that these tasks are.
    """
    with accelerator.autocast():
        outputs: Any = model(list(episodes))
    loss, accuracy, terms = task_loss(outputs, list(episodes), weights)
    accelerator.backward(share * loss)
    return {"loss": loss.detach(), "accuracy": accuracy, **{name: term.detach() for name, term in terms.items()}}


def step_gradient(
    accelerator: Accelerator,
    model: nn.Module,
    episodes: Sequence[Episode],
    weights: Mapping[str, float],
    seed: int,
    tasks_per_pass: int | None = None,
) -> Numbers:
    """Compute the gradient of a step over all processes and return the means of this process's tasks."""
    size = tasks_per_pass or len(episodes)
    passes = [episodes[start : start + size] for start in range(0, len(episodes), size)]
    means: Numbers = {}
    for number, tasks in enumerate(passes):
        seed_everything(seed)
        is_last = number == len(passes) - 1
        share = len(tasks) / len(episodes)
        with nullcontext() if is_last else accelerator.no_sync(model):
            numbers = backward_pass(accelerator, model, tasks, weights, share)
        for name, value in numbers.items():
            means[name] = means.get(name, 0.0) + share * value
    return means


UNSHARDED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def make_two_pass(recipe: Recipe, recognizer: FewShotRecognizer, accelerator: Accelerator) -> TwoPass | None:
    """Return the two-pass training that the recipe asks for, or None.

    Raises:
        DmgalError: the launcher shards the weights. Only the forward pass of the full model would gather them.
    """
    train = recipe.train
    if train.two_pass == "no":
        return None
    if accelerator.distributed_type not in UNSHARDED:
        raise DmgalError(
            "Two-pass training needs all weights on every process.",
            received=f"train.two_pass: {train.two_pass} under {accelerator.distributed_type.value}",
            expected="one process, or several that hold all weights each (DDP)",
            remedy="Remove train.two_pass, or launch without FSDP and DeepSpeed.",
        )
    return TwoPass(
        recognizer,
        None if train.two_pass == "auto" else train.two_pass,
        memory_budget=None if train.memory_budget is None else 1e9 * train.memory_budget,
        keep_products=not train.compile,  # the choice of tensors saved for backward needs single operations
        autocast=accelerator.autocast,
        notify=logger.info,
    )


def two_pass_gradient(
    accelerator: Accelerator, two_pass: TwoPass, episodes: Sequence[Episode], weights: Mapping[str, float], seed: int
) -> Numbers:
    """Compute the gradient of a step over all processes and return this process's means, like ``step_gradient``."""
    seed_everything(seed)
    outputs = two_pass.backward(
        episodes,
        lambda output, episode: task_loss([output], [episode], weights)[0],
        None if accelerator.scaler is None else accelerator.scaler.scale,
    )
    average_gradients(two_pass.recognizer.parameters())
    loss, accuracy, terms = task_loss(outputs, list(episodes), weights)
    return {"loss": loss, "accuracy": accuracy, **terms}


@torch.no_grad()
def measure_head_norms(recognizer: FewShotRecognizer, episode: Episode) -> int:
    """Give the statistics of a task to the head's batch norms that have none, and return the number of these norms.

    Dropout draws from a separate random state, so later random numbers do not change.
    """
    head = recognizer.head
    modules = head.modules() if isinstance(head, nn.Module) else ()
    norms = [module for module in modules if isinstance(module, _BatchNorm) and not module.num_batches_tracked]
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    recognizer.train()  # in evaluation mode a head may skip branches that only training uses
    freeze_batch_norm(recognizer)
    for norm in norms:
        norm.train()
        norm.momentum = None  # a cumulative mean over all batches
    with torch.random.fork_rng():
        torch.manual_seed(0)
        recognizer(episode)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return len(norms)
