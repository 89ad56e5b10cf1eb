"""Schedules are functions of the step, weight decay is for matrices, and the average follows what is trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dmgal.backbones import FrameEncoder, load_backbone
from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.heads import BiMHM
from dmgal.recipes.averaging import MovingAverage
from dmgal.recipes.config import Recipe, TrainConfig
from dmgal.recipes.optimization import build_optimizer, build_schedule

SCHEDULES = ["cosine", "linear", "polynomial", "inverse_sqrt", "constant"]


def rates(train: TrainConfig, first: int = 0) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=2.0)
    schedule, found = build_schedule(optimizer, train, done=first), []
    for _ in range(first, train.steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_that_is_taken_up_anywhere_goes_on_to_the_bit(name):
    train = TrainConfig(steps=20, warmup_steps=5, schedule=name)
    whole = rates(train)
    assert max(whole) <= 2.0 and whole[0] < whole[4] <= whole[5]
    assert whole[-1] < 0.3 if name in ("cosine", "linear", "polynomial") else whole[-1] > 0.5
    for first in (1, 5, 13):
        assert rates(train, first) == whole[first:]


def test_weight_decay_is_for_matrices_of_what_is_trained():
    recognizer = FewShotRecognizer(FrameEncoder(load_backbone("tiny-clip")), BiMHM(logit_scale=10.0))
    optimizer = build_optimizer(recognizer, Recipe())
    groups = {group["weight_decay"]: group["params"] for group in optimizer.param_groups if group["lr"] == 1e-4}
    assert all(p.ndim >= 2 for p in groups[0.01]) and all(p.ndim < 2 for p in groups[0.0])
    (head,) = (group for group in optimizer.param_groups if group["lr"] == 4e-3)
    assert head["params"] == [recognizer.head.log_scale] and head["weight_decay"] == 0.0
    everything = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(everything) == len([p for p in recognizer.parameters() if p.requires_grad])


def test_the_average_is_the_recursion_and_leaves_the_model_as_it_was():
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    average, expected = MovingAverage(model, 0.9), model.weight.detach().clone()
    assert set(average.values) == {"weight"}
    for _ in range(5):
        with torch.no_grad():
            model.weight += torch.randn(2, 3)
        average.update()
        expected = 0.9 * expected + 0.1 * model.weight.detach()
    torch.testing.assert_close(average.values["weight"], expected)
    trained = model.weight.detach().clone()
    with average.in_place():
        torch.testing.assert_close(model.weight.detach(), expected)
    assert torch.equal(model.weight, trained)
    other = MovingAverage(model, 0.9)
    other.load(average.values)
    assert torch.equal(other.values["weight"], average.values["weight"])
