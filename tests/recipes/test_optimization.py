"""Schedules, optimizers, weight decay and the moving average."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dmgal.backbones import FrameEncoder, load_backbone
from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.heads import BiMHM
from dmgal.errors import DmgalError
from dmgal.recipes.run.config import Recipe, TrainConfig
from dmgal.recipes.run.weights import load_optimizer_state, optimizer_state
from dmgal.recipes.training.optimization import MovingAverage, build_optimizer, build_schedule

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
def test_resumed_schedule_is_bit_identical(name):
    train = TrainConfig(steps=20, warmup_steps=5, schedule=name)
    whole = rates(train)
    assert max(whole) <= 2.0 and whole[0] < whole[4] <= whole[5]
    assert whole[-1] < 0.3 if name in ("cosine", "linear", "polynomial") else whole[-1] > 0.5
    for first in (1, 5, 13):
        assert rates(train, first) == whole[first:]


CLASSES = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


@pytest.mark.parametrize("name", CLASSES)
def test_recipe_chooses_torch_optimizer(name):
    train = TrainConfig(optimizer=name, momentum=0.9 if name == "sgd" else 0.0)
    recognizer = FewShotRecognizer(FrameEncoder(load_backbone("tiny-clip")), BiMHM(logit_scale=10.0))
    optimizer = build_optimizer(recognizer, Recipe(train=train))
    assert type(optimizer) is CLASSES[name]
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.01}
    assert [group.get("momentum") for group in optimizer.param_groups] == [0.9 if name == "sgd" else None] * 3


@pytest.mark.parametrize(
    ("options", "received"),
    [
        ({"optimizer": "adam", "momentum": 0.9}, "momentum: 0.9, train.optimizer: adam"),
        ({"optimizer": "sgd", "momentum": 1.0}, "momentum: 1.0"),
    ],
)
def test_unused_momentum_raises(options, received):
    with pytest.raises(DmgalError, match=received):
        TrainConfig(**options)


@pytest.mark.parametrize("name", CLASSES)
def test_optimizer_state_is_saved_by_parameter_name(name):
    """Other options may put parameters into other groups, in another order."""

    def trained(decay, first=None):
        torch.manual_seed(0)
        recognizer = FewShotRecognizer(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3)), nn.LayerNorm(3))
        train = TrainConfig(optimizer=name, momentum=0.5 if name == "sgd" else 0.0, weight_decay=decay)
        optimizer = build_optimizer(recognizer, Recipe(train=train))
        if first:
            load_optimizer_state(optimizer, recognizer, {key: value.clone() for key, value in first.items()})
        for parameter in recognizer.parameters():
            parameter.grad = torch.randn(parameter.shape)
        optimizer.step()
        return optimizer, {key: value.clone() for key, value in optimizer_state(optimizer, recognizer).items()}

    optimizer, remembered = trained(0.1)
    assert len(remembered) == (6 if name == "sgd" else 18)
    other, _ = trained(0.0)
    assert [len(o.param_groups) for o in (optimizer, other)] == [2, 1]
    twice = [trained(decay, first=remembered)[1] for decay in (0.0, 0.1)]
    kind = "momentum_buffer" if name == "sgd" else "exp_avg"
    expected = (0.5 if name == "sgd" else 0.9) * remembered[f"{kind}.head.bias"]
    gradient = optimizer.param_groups[1]["params"][-1].grad  # of head.bias, which has no weight decay
    expected = expected + (1.0 if name == "sgd" else 0.1) * gradient
    for found in twice:
        torch.testing.assert_close(found[f"{kind}.head.bias"], expected)


def test_only_trained_matrices_decay():
    recognizer = FewShotRecognizer(FrameEncoder(load_backbone("tiny-clip")), BiMHM(logit_scale=10.0))
    optimizer = build_optimizer(recognizer, Recipe())
    groups = {group["weight_decay"]: group["params"] for group in optimizer.param_groups if group["lr"] == 1e-4}
    assert all(p.ndim >= 2 for p in groups[0.01]) and all(p.ndim < 2 for p in groups[0.0])
    (head,) = (group for group in optimizer.param_groups if group["lr"] == 4e-3)
    assert head["params"] == [recognizer.head.log_scale] and head["weight_decay"] == 0.0
    token = nn.Parameter(torch.zeros(1, 1, 8))  # a vector with extra dimensions for broadcasting
    recognizer.head.token = token
    with_token = build_optimizer(recognizer, Recipe()).param_groups
    assert [group["weight_decay"] for group in with_token if any(p is token for p in group["params"])] == [0.0]
    everything = [p for group in with_token for p in group["params"]]
    assert len(everything) == len([p for p in recognizer.parameters() if p.requires_grad])


def test_average_follows_recursion_and_leaves_model_unchanged():
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
