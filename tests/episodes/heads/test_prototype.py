"""Prototypes: both metrics by hand, shots, the scale, and that no order is left."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dmgal.episodes.heads import Prototype
from dmgal.errors import DmgalError


def videos(count: int, seed: int = 0, width: int = 8) -> Tensor:
    return torch.randn(count, 4, width, generator=torch.Generator().manual_seed(seed))


def logits(head: Prototype, support: Tensor, labels: list[int], query: Tensor) -> Tensor:
    return head.compare(head.prepare(support), torch.tensor(labels), head.prepare(query)).logits


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_logits_computed_by_hand(metric: str) -> None:
    support, query = videos(4), videos(3, seed=1)
    ours = logits(Prototype(metric), support, [0, 1, 0, 0], query)
    means = torch.stack((support[[0, 2, 3]].mean((0, 1)), support[1].mean(0)))
    for q, c in torch.cartesian_prod(torch.arange(3), torch.arange(2)).tolist():
        mean = query[q].mean(0)
        if metric == "cosine":
            expected = functional.cosine_similarity(mean, means[c], dim=0) - 1
        else:
            expected = -(mean - means[c]).square().sum()
        torch.testing.assert_close(ours[q, c], expected)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_order_of_frames_does_not_change_logits(metric: str) -> None:
    support, query, head = videos(2), videos(2, seed=1), Prototype(metric)
    torch.testing.assert_close(logits(head, support, [0, 1], query.flip(1)), logits(head, support, [0, 1], query))


def test_learned_scale_is_a_logarithm_and_distances_are_divided_by_the_width() -> None:
    task = videos(2), [0, 1], videos(2, seed=1)
    head = Prototype("euclidean", logit_scale=4.0)
    torch.testing.assert_close(logits(head, *task), logits(Prototype("euclidean"), *task) * 4 / 8)
    torch.testing.assert_close(logits(Prototype(logit_scale=4.0), *task), logits(Prototype(), *task) * 4)
    assert head.log_scale.item() == pytest.approx(math.log(4.0)) and head.log_scale.requires_grad
    assert not Prototype(logit_scale=4.0, learn_scale=False).log_scale.requires_grad
    assert not list(Prototype().parameters())


def test_mean_is_not_rounded_to_bfloat16() -> None:
    features = (videos(2) * 0.1 + 10).bfloat16()
    torch.testing.assert_close(Prototype().prepare(features)["mean"], features.float().mean(dim=1))


@pytest.mark.parametrize("options", [{"metric": "dot"}, {"logit_scale": 0.0}], ids=str)
def test_invalid_options_raise(options: dict) -> None:
    with pytest.raises(DmgalError, match=next(iter(options))):
        Prototype(**options)
