"""One training step: a few tasks at a time or in two passes (see `TwoPass`), gradients averaged over all tasks.

Random numbers in the model (dropout) are the same for every task of a step, so the result depends neither on the number
of processes nor on the number of tasks in a pass. Frozen batch norms of a new head are first calibrated on the videos
of the first task: without statistics, the attention of S-MGA starts with a single winner in every row. A step whose
loss explodes or is not finite is logged and skipped, and changes neither weights nor moments. Too many in a row end the
run. Nothing is saved meanwhile, because bad weights may be the cause.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dmgal.episodes import Episode, FewShotRecognizer
from dmgal.episodes.two_pass.distributed import average_gradients
from dmgal.episodes.two_pass.two_pass import TwoPass
from dmgal.errors import DmgalError
from dmgal.recipes.run.build import freeze_batch_norm
from dmgal.recipes.run.config import Recipe, TrainConfig
from dmgal.recipes.training.optimization import task_loss

Numbers = dict[str, Tensor]
"""Means over tasks of ``loss``, ``accuracy`` and each loss by name, without gradients."""


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def backward_pass(
    accelerator: Accelerator, model: nn.Module, episodes: Sequence[Episode], weights: Mapping[str, float], share: float
) -> Numbers:
    """Add ``share`` times the gradient of some tasks' mean loss to the gradients of the parameters.

    Args:
        accelerator: the run's accelerator.
        model: the model prepared by Accelerate, which maps episodes to their `EpisodeOutput`.
        episodes: the tasks, on the model's device.
        weights: weights of the losses, by name.
        share: fraction of this process's tasks in the step that these tasks are.
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


_UNSHARDED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def make_two_pass(
    recipe: Recipe, recognizer: FewShotRecognizer, accelerator: Accelerator, say: Callable[[str], object]
) -> TwoPass | None:
    """Return the two-pass training that the recipe asks for, or None.

    Raises:
        DmgalError: the launcher shards the weights. Only the forward pass of the full model would gather them.
    """
    train = recipe.train
    if train.two_pass == "no":
        return None
    if accelerator.distributed_type not in _UNSHARDED:
        raise DmgalError(
            "Two-pass training needs the whole weights on every process.",
            received=f"train.two_pass: {train.two_pass} under {accelerator.distributed_type.value}",
            expected="one process, or several with whole weights (DDP)",
            remedy="Remove train.two_pass, or launch without FSDP and DeepSpeed.",
        )
    return TwoPass(
        recognizer,
        None if train.two_pass == "auto" else train.two_pass,
        memory_budget=None if train.memory_budget is None else 1e9 * train.memory_budget,
        keep_products=not train.compile,  # the choice of tensors saved for backward needs single operations
        autocast=accelerator.autocast,
        notify=say,
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


REMEMBERED = 100
"""Number of recent good losses that define the usual loss."""
NEEDED = 20
"""Minimum number of good losses before a finite loss can count as exploding."""
EXPLODING = 100.0
"""Factor over the usual loss (at least the loss of guessing) that counts as exploding."""


@dataclass
class BadLosses:
    """The policy and its counters. The fields with defaults are saved with a checkpoint.

    Args:
        train: training options, of which ``on_bad_loss`` and ``max_bad_losses`` are used.
        guessing: loss of a model that guesses, ``ln(n_way)``.
        in_row: number of bad steps since the last good one.
        total: number of all bad steps.
        recent: the latest good losses.
    """

    train: TrainConfig
    guessing: float
    in_row: int = 0
    total: int = 0
    recent: list[float] = field(default_factory=list)

    def verdict(self, loss: float, gradient_norm: float) -> str | None:
        """Count a step and return what is wrong with it, or None if it is good."""
        problem = self._problem(loss, gradient_norm)
        if problem is None:
            self.in_row = 0
            self.recent = [*self.recent, loss][-REMEMBERED:]
        else:
            self.in_row, self.total = self.in_row + 1, self.total + 1
        return problem

    def check(self, problem: str, step: int) -> None:
        """Raise an error if the policy ends the run after a bad step.

        Args:
            problem: what is wrong with this step.
            step: number of the step.

        Raises:
            DmgalError: the run ends here.
        """
        if self.train.on_bad_loss == "skip" and self.in_row < self.train.max_bad_losses:
            return
        raise DmgalError(
            "Training diverged.",
            received=f"{problem} at step {step}; {self.in_row} bad step(s) in a row, {self.total} in all",
            expected="a finite loss that does not explode. Nothing was saved since the first of these bad steps",
            remedy="Lower --train.learning-rate, or use --train.precision float32. Resuming repeats the same steps.",
        )

    def _problem(self, loss: float, gradient_norm: float) -> str | None:
        if not math.isfinite(loss):
            return f"the loss is not a finite number ({loss})"
        if not math.isfinite(gradient_norm):
            return f"the gradient is not a finite number ({gradient_norm})"
        usual = max(statistics.median(self.recent), self.guessing) if len(self.recent) >= NEEDED else math.inf
        if loss > EXPLODING * usual:
            return f"the loss explodes ({loss:.3g}, usually {usual:.3g})"
        return None
