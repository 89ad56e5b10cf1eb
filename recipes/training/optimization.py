"""Optimization of the trained parameters: losses, also bad ones, optimizer, learning rate and moving average.

The exponential moving average often validates better than the last step's weights. A loss that stays on a plateau is
reported. A step whose loss explodes or is not finite is logged and skipped, and changes neither weights nor moments.
Too many in a row end the run. Nothing is saved meanwhile, because bad weights may be the cause.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dmgal.adapters import is_added
from dmgal.episodes import Episode, EpisodeOutput, FewShotRecognizer
from dmgal.errors import DmgalError
from dmgal.recipes.run.config import Recipe, TrainConfig

OPTIMIZERS: dict[str, Any] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
PLATEAU_STEPS = 200


@dataclass
class Plateau:
    """One-time check if the loss is still that of guessing. This training fails by plateaus, not by overfitting."""

    n_way: int
    losses: list[float] = field(default_factory=list)

    def notice(self, step: int, loss: float) -> str | None:
        """Add a loss and return a notice, or None if there is no reason for one."""
        self.losses.append(loss)
        guessing = math.log(self.n_way)
        if len(self.losses) != PLATEAU_STEPS or sum(self.losses[-100:]) / 100 < 0.97 * guessing:
            return None
        return (
            f"step {step}: the loss is still that of guessing, ln({self.n_way}) = {guessing:.2f}. "
            "A lower --train.learning-rate, more --train.warmup-steps or --head.center video often helps."
        )


def task_loss(
    outputs: list[EpisodeOutput], episodes: list[Episode], weights: Mapping[str, float]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return means over tasks: the weighted sum of all losses, the accuracy, and each unweighted loss by name."""
    losses, accuracies = [], []
    for output, episode in zip(outputs, episodes, strict=True):
        losses.append({"cross_entropy": F.cross_entropy(output.logits, episode.query_labels), **output.losses})
        accuracies.append((output.logits.argmax(1) == episode.query_labels).float().mean())
    terms = {name: torch.stack([task[name] for task in losses]).mean() for name in losses[0]}
    total = torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
    return total, torch.stack(accuracies).mean(), terms


def loss_weights(head: object, chosen: Mapping[str, float]) -> dict[str, float]:
    """Return the weight of each loss by name: the recipe's choice, else the head's own from its paper.

    Raises:
        DmgalError: the recipe weights a loss that the head does not have.
    """
    own: dict[str, float] = {"cross_entropy": 1.0, **getattr(head, "loss_weights", {})}
    unknown = [name for name in chosen if name not in own]
    if unknown:
        raise DmgalError(
            "The recipe weights a loss that this head does not have.",
            received=", ".join(f"train.loss_weights.{name}" for name in unknown),
            expected=f"for {type(head).__name__}: {', '.join(own)}",
            remedy="Remove it.",
        )
    return {**own, **chosen}


def build_optimizer(recognizer: FewShotRecognizer, recipe: Recipe) -> torch.optim.Optimizer:
    """Build the optimizer. Only matrices decay, and the backbone's own parameters have a separate learning rate."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in recognizer.named_parameters():
        if parameter.requires_grad:
            is_backbone = name.startswith("encoder.backbone.") and not is_added(name)
            rate = recipe.train.backbone_learning_rate if is_backbone else recipe.train.learning_rate
            decay = recipe.train.weight_decay if parameter.squeeze().ndim >= 2 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    options = {"momentum": recipe.train.momentum} if recipe.train.optimizer == "sgd" else {}
    return OPTIMIZERS[recipe.train.optimizer](
        [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]
        or [{"params": [nn.Parameter(torch.zeros(()))], "lr": 0.0}],
        **options,
    )


def build_schedule(optimizer: torch.optim.Optimizer, train: TrainConfig, done: int = 0) -> LambdaLR:
    """Build a linear warm-up and the recipe's schedule. They depend on the step only, so resuming needs only it."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return LambdaLR(optimizer, _factor(train), last_epoch=done - 1)


def _factor(train: TrainConfig) -> Callable[[int], float]:
    """Return the function from step to learning rate factor: our own for cosine, else from transformers."""
    if train.schedule == "cosine":
        return partial(_cosine, train.warmup_steps, train.steps)
    from transformers import get_scheduler

    name = "constant_with_warmup" if train.schedule == "constant" else train.schedule
    dummy = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1e-3)
    steps = max(train.steps, train.warmup_steps + 1)
    schedule: Any = get_scheduler(name, dummy, num_warmup_steps=train.warmup_steps, num_training_steps=steps)
    factor: Callable[[int], float] = schedule.lr_lambdas[0]
    return factor


def _cosine(warmup_steps: int, steps: int, step: int) -> float:
    """Return the factor at a step. Warm-up starts above zero, so the first step is not lost."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


class MovingAverage:
    """Moving average of a model's parameters that require gradients, starting at their initial values.

    ``decay`` is the weight of the old average in each update.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.values: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._trained.items()}
        self._update: Any = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self) -> None:
        """Update the average. Call this after each optimizer step."""
        self._update(list(self.values.values()), [p.detach() for p in self._trained.values()], 0)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Swap the averaged weights into the model for the duration of the context."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Load saved averages of the same parameters. Raise a ValueError if one has another shape."""
        for name, value in self.values.items():
            if value.shape != values[name].shape:
                raise ValueError(f"{name} has the shape {tuple(values[name].shape)}, not {tuple(value.shape)}")
            value.copy_(values[name])

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._trained.items():
            current = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(current)


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
        """Raise a DmgalError if the policy ends the run after a bad step."""
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
