"""Policy for losses that are not finite or explode: the step is logged and skipped, too many in a row end the run.

A skipped step changes neither weights nor optimizer moments, so a single bad batch does no harm. Several bad steps in
a row may be caused by bad weights. Nothing is saved then until a good step or the end of the training.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

from dmgal.errors import DmgalError
from dmgal.recipes.config import TrainConfig

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
