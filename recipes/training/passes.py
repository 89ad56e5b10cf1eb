"""The forward and backward passes of one training step: some tasks at a time, gradients averaged over all of them.

Whatever is random in the model (dropout) is drawn alike for every task of a step, so neither the number of processes
nor that of tasks in a pass changes what a step computes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dmgal.episodes import Episode
from dmgal.recipes.training.optimization import task_loss

Numbers = dict[str, Tensor]
"""``loss``, ``accuracy`` and the losses by name, means over tasks, without gradients."""


def seed_everything(seed: int) -> None:
    """Of Python, numpy and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def backward_pass(
    accelerator: Accelerator, model: nn.Module, episodes: Sequence[Episode], weights: Mapping[str, float], share: float
) -> Numbers:
    """Adds ``share`` times the gradient of some tasks' mean loss to what the parameters hold.

    Args:
        accelerator: of the run.
        model: as Accelerate has prepared it; from episodes to their `EpisodeOutput`.
        episodes: the tasks, on the model's device.
        weights: of the losses, by name.
        share: of these tasks among those of this process in the step.
    """
    with accelerator.autocast():
        outputs: Any = model(list(episodes))
    loss, accuracy, terms = task_loss(outputs, list(episodes), weights)
    accelerator.backward(loss if share == 1 else share * loss)
    return {"loss": loss.detach(), "accuracy": accuracy, **{name: term.detach() for name, term in terms.items()}}


def step_gradient(
    accelerator: Accelerator,
    model: nn.Module,
    episodes: Sequence[Episode],
    weights: Mapping[str, float],
    seed: int,
    tasks_per_pass: int | None = None,
) -> Numbers:
    """The gradient of a whole step, over all processes; its numbers are this process's."""
    size = tasks_per_pass or len(episodes)
    passes = [episodes[start : start + size] for start in range(0, len(episodes), size)]
    means: Numbers = {}
    for place, some in enumerate(passes):
        seed_everything(seed)
        is_last = place == len(passes) - 1
        share = len(some) / len(episodes)
        with nullcontext() if is_last else accelerator.no_sync(model):
            numbers = backward_pass(accelerator, model, some, weights, share)
        for name, value in numbers.items():
            means[name] = means[name] + share * value if name in means else value if share == 1 else share * value
    return means
