"""A loss that is not finite, or explodes: told, counted, its step left out; too many of them in a row end the run.

A step is left out whole: neither weights nor moments change, so a single bad batch does no harm. Where several are bad
in a row the weights may be at fault, so nothing is saved until a good one, or the end of the training.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

from dmgal.errors import DmgalError
from dmgal.recipes.config import TrainConfig

REMEMBERED = 100
"""Good losses that tell what is usual."""
NEEDED = 20
"""Before so many, no finite loss counts as exploding."""
EXPLODING = 100.0
"""Times the usual loss, or times that of guessing where that is more."""


@dataclass
class BadLosses:
    """The policy, and what it has seen; the fields with values are saved with a checkpoint.

    Args:
        train: ``on_bad_loss`` and ``max_bad_losses``.
        guessing: loss of a model that guesses, ``ln(n_way)``.
    """

    train: TrainConfig
    guessing: float
    in_row: int = 0
    total: int = 0
    recent: list[float] = field(default_factory=list)

    def verdict(self, loss: float, gradient_norm: float) -> str | None:
        """What is wrong with a step, or None; counts it."""
        problem = self._problem(loss, gradient_norm)
        if problem is None:
            self.in_row = 0
            self.recent = [*self.recent, loss][-REMEMBERED:]
        else:
            self.in_row, self.total = self.in_row + 1, self.total + 1
        return problem

    def check(self, problem: str, step: int) -> None:
        """DmgalError where the policy says that a bad step ends the run.

        Args:
            problem: of this step.
            step: its number.
        """
        if self.train.on_bad_loss == "skip" and self.in_row < self.train.max_bad_losses:
            return
        raise DmgalError(
            "The training has come apart.",
            received=f"{problem} at step {step}; {self.in_row} bad step(s) in a row, {self.total} in all",
            expected="a finite loss that does not explode; nothing was saved since the first of these steps",
            remedy="lower --train.learning-rate, or use --train.precision float32; --resume repeats the same steps",
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
