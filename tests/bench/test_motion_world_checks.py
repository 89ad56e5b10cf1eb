"""Checks of motion world: a leak in the drawn parameters or in the averages over time would be found."""

from __future__ import annotations

import numpy as np
import torch

from dmgal.bench import motion_world_checks as checks
from dmgal.videos.motion_world.clips import MotionWorld


def test_all_small_numbers_are_parameters():
    world = MotionWorld()
    numbers = dict(checks.numbers_in(checks.draw_parameters(world.generator("walk", 0))))
    assert len(numbers) > 200 and all(np.isfinite(list(numbers.values())))
    assert {"[0].yaw", "[0].place[1]", "[1].zoom[1]", "[2].phase", "len([1].movers)"} <= set(numbers)


def test_one_parameter_that_depends_on_the_class_is_found():
    table = checks.parameter_table(MotionWorld(), ["walk", "run"], 150)[:, :40].reshape(2, 150, 40)
    leaking = table.clone()
    leaking[1, :, 7] += 3 * table[..., 7].std()
    low, high = checks.class_accuracy(table)["interval_of_chance_percent"]
    assert low <= checks.class_accuracy(table)["accuracy_percent"] <= high
    assert checks.class_accuracy(leaking)["accuracy_percent"] > high + 20


def test_pairs_are_told_apart_only_by_their_order():
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(-1, 1, 8)[:, None]
    noise = torch.randn(2, 40, 8, 5, generator=generator)
    frames = torch.stack([ramp.expand(8, 5), ramp.flip(0).expand(8, 5)])[:, None] + 0.5 * noise
    averaged = checks.pair_accuracy(frames.mean(2), [(0, 1)])
    ordered = checks.pair_accuracy(frames[:, :, -4:].mean(2) - frames.mean(2), [(0, 1)])
    low, high = averaged["interval_of_chance_percent"]
    assert low <= averaged["accuracy_percent"] <= high < ordered["accuracy_percent"]
