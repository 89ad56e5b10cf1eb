"""The policy for losses that are not finite or explode."""

from __future__ import annotations

import math

import pytest

from dmgal.errors import DmgalError
from dmgal.recipes.bad_losses import NEEDED, BadLosses
from dmgal.recipes.config import TrainConfig


def policy(**options) -> BadLosses:
    return BadLosses(TrainConfig(**options), guessing=math.log(5))


@pytest.mark.parametrize(
    ("loss", "norm", "problem"),
    [
        (math.nan, 1.0, "the loss is not a finite number (nan)"),
        (math.inf, 1.0, "the loss is not a finite number (inf)"),
        (1.0, math.nan, "the gradient is not a finite number (nan)"),
        (1e9, 1.0, "the loss explodes"),
    ],
)
def test_what_counts_as_bad(loss, norm, problem):
    seen = policy()
    for _ in range(NEEDED):
        assert seen.verdict(1.5, 1.0) is None
    assert seen.verdict(loss, norm).startswith(problem)
    assert (seen.in_row, seen.total) == (1, 1)
    assert seen.verdict(1.5, 1.0) is None
    assert (seen.in_row, seen.total) == (0, 1)


def test_a_wrong_but_confident_task_after_perfect_ones_is_not_an_explosion():
    seen = policy()
    for _ in range(50):
        seen.verdict(1e-6, 1e-6)
    assert seen.verdict(20.0, 1.0) is None


def test_so_many_in_a_row_end_the_run_and_so_does_the_last_step():
    seen = policy(max_bad_losses=3)
    for step in (1, 2):
        seen.check(seen.verdict(math.nan, 1.0), step, last=False)
    with pytest.raises(DmgalError, match=r"at step 3; 3 bad step\(s\) in a row"):
        seen.check(seen.verdict(math.nan, 1.0), 3, last=False)
    with pytest.raises(DmgalError, match="at step 9"):
        policy().check("the loss is not a finite number", 9, last=True)


def test_stop_means_the_first():
    seen = policy(on_bad_loss="stop")
    with pytest.raises(DmgalError, match="not a finite number"):
        seen.check(seen.verdict(math.nan, 1.0), 1, last=False)
