"""TEAM: the released logits, losses and gradients, the exclusive distance by hand, and tasks of one class."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from dmgal.backbones.state import VideoState
from dmgal.episodes.episode import TaskTargets
from dmgal.episodes.heads import TEAM
from dmgal.episodes.heads.team import REFERENCE_NAMES, farthest_other
from dmgal.errors import DmgalError

CASES = ("one_shot", "five_shots")


@pytest.fixture
def golden(read_golden):
    """Return a function that makes a head with the released weights and a case's tensors, in some precision."""
    tensors, weights, info = read_golden("team")

    def read(case: str, dtype: torch.dtype = torch.float64):
        head = TEAM(info["channels"], info["patterns"], info["dropout"]).to(dtype)
        head.load_reference_state_dict(weights)
        names = [name for name in tensors if name.startswith(f"{case}.")]
        return head, {name.removeprefix(f"{case}."): tensors[name] for name in names}

    return read


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_released_code(golden, assert_relatively_close, case, dtype, tolerance, training):
    head, tensors = golden(case, dtype)
    support, query = (head.train(training).prepare(tensors[name].to(dtype)) for name in ("support", "query"))
    logits = head.compare(support, tensors["labels"], query).logits
    assert_relatively_close(logits, tensors["logits"], tolerance)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_equal_released_code(golden, assert_relatively_close, case):
    head, tensors = golden(case)
    videos = {name: tensors[name].requires_grad_() for name in ("support", "query")}
    support, query = (head.train().prepare(features) for features in videos.values())
    losses = head.compare(support, tensors["labels"], query, TaskTargets(tensors["answers"])).losses
    assert set(losses) == {"cross_entropy", *head.loss_weights} and head.loss_weights == {"exclusive": 1.0}
    assert_relatively_close(losses["cross_entropy"], tensors["loss_pos"], 1e-6)
    assert_relatively_close(losses["exclusive"], tensors["loss_neg"], 1e-6)
    sum(losses.values()).backward()
    for theirs, ours in REFERENCE_NAMES.items():
        names = [name for name in tensors if name.startswith(f"gradients.{theirs}")]
        assert names
        for name in names:
            gradient = head.get_parameter(name.replace(f"gradients.{theirs}", ours)).grad
            assert_relatively_close(gradient, tensors[name].view_as(gradient), 1e-6)
    for name, features in videos.items():
        assert_relatively_close(features.grad, tensors[f"gradients.{name}"], 1e-6)


def test_exclusive_distance_is_that_of_the_farthest_other_class():
    distances = torch.tensor([[1.0, 4.0, 2.0], [3.0, 0.0, 3.0]])
    assert torch.equal(farthest_other(distances), torch.tensor([[4.0, 2.0, 4.0], [3.0, 3.0, 3.0]]))


def test_a_task_of_one_class_is_not_adapted():
    head, frames = TEAM(16, 3).eval(), torch.randn(3, 4, 16)
    support, query = head.prepare(frames[:2]), head.prepare(frames[2:])
    logits = head.compare(support, torch.tensor([0, 0]), query).logits
    mean = head.prepare(frames[:2].mean(dim=0, keepdim=True))
    cosines = functional.cosine_similarity(mean["instance"], query["instance"], dim=-1)
    torch.testing.assert_close(logits, (cosines - 1).sum(dim=1, keepdim=True))


def test_support_and_query_may_have_different_numbers_of_frames():
    head = TEAM(16, 3).eval()
    support, query = head.prepare(torch.randn(2, 4, 16)), head.prepare(torch.randn(3, 9, 16))
    assert head.compare(support, torch.tensor([0, 1]), query).logits.shape == (3, 2)


def test_query_frames_are_not_read():
    head = TEAM(16, 3).eval()
    support, query = head.prepare(torch.randn(2, 4, 16)), head.prepare(torch.randn(3, 4, 16))
    tokens = VideoState(instance=query["instance"], exclusive=query["exclusive"])
    labels = torch.tensor([1, 0])
    assert torch.equal(head.compare(support, labels, tokens).logits, head.compare(support, labels, query).logits)


def test_centered_frames_lose_what_all_frames_share():
    head, frames = TEAM(16, 3, center="video").eval(), torch.randn(2, 4, 16)
    torch.testing.assert_close(head.prepare(frames + torch.randn(2, 1, 16)), head.prepare(frames))


def test_maps_raise():
    with pytest.raises(DmgalError, match="compares frame features"):
        TEAM(16, 3).prepare(torch.randn(2, 4, 16, 3, 3))


def test_no_patterns_raise():
    with pytest.raises(DmgalError, match="num_patterns"):
        TEAM(16, 0)
