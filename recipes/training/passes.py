"""Forward and backward passes of one training step: a few tasks at a time, gradients averaged over all tasks.

Random numbers in the model (dropout) are the same for every task of a step. So neither the number of processes nor the
number of tasks in a pass changes what a step computes.
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
