"""HyRSM: the released numbers, what the relation sees, and the base classes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from dmgal.backbones.state import VideoState
from dmgal.episodes.episode import TaskTargets
from dmgal.episodes.heads import HyRSM
from dmgal.errors import DmgalError


@pytest.fixture
def golden(read_golden) -> tuple[HyRSM, VideoState, VideoState, dict, dict]:
    tensors, weights, info = read_golden("hyrsm_1shot")
    head = HyRSM(32, info["heads"], num_base_classes=7).eval()
    head.load_reference_state_dict(weights)
    names = ("support_features", "query_features")
    support, query = (head.prepare(tensors[name].unflatten(0, (-1, info["frames"]))) for name in names)
    return head, support, query, tensors, weights


def test_golden(golden, assert_relatively_close) -> None:
    head, support, query, tensors, _ = golden
    assert_relatively_close(head.compare(support, tensors["labels"], query).logits, tensors["logits"])
    base = torch.cat([head.base_class_logits(state) for state in (support, query)])
    assert_relatively_close(base.flatten(0, 1), tensors["base_class_logits"])


def test_every_frame_predicts_the_base_class_of_its_video(golden) -> None:
    head, support, query, tensors, _ = golden
    support_classes, query_classes = torch.tensor([4, 2, 6, 0, 1]), torch.tensor([0, 4, 4])
    targets = TaskTargets(torch.tensor([3, 0, 0]), support_classes, query_classes)
    losses = head.compare(support, tensors["labels"], query, targets).losses
    frames = torch.cat((support_classes, query_classes)).repeat_interleave(8)
    torch.testing.assert_close(losses["base_classes"], functional.cross_entropy(tensors["base_class_logits"], frames))
    assert list(losses) == list(head.loss_weights) == ["base_classes"]


def test_without_base_classes_the_loss_is_absent(golden) -> None:
    _, support, query, tensors, weights = golden
    head = HyRSM(32, 4).eval()
    head.load_reference_state_dict(weights)
    classes = torch.zeros(5, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    assert not head.compare(support, tensors["labels"], query, TaskTargets(torch.tensor([0, 1, 2]), *classes)).losses
    assert not golden[0].compare(support, tensors["labels"], query, TaskTargets(torch.tensor([0, 1, 2]))).losses


def test_support_is_related_for_each_query_separately(golden) -> None:
    head, support, query, _, _ = golden
    support_means, query_means = support["frames"].mean(dim=1), query["frames"].mean(dim=1)
    seen, related = head.relation(support_means, query_means)
    assert seen.shape == (3, 5, 32) and related.shape == (3, 32)
    assert not torch.allclose(seen[0], seen[1], rtol=1e-3)
    seen_alone, related_alone = head.relation(support_means, query_means[1:2])
    torch.testing.assert_close(seen_alone[0], seen[1])
    torch.testing.assert_close(related_alone[0], related[1])


def test_width_not_divisible_by_heads_raises() -> None:
    with pytest.raises(DmgalError, match="width 30, 8 heads"):
        HyRSM(30)


def test_patch_maps_raise() -> None:
    with pytest.raises(DmgalError, match="pooling"):
        HyRSM(16).prepare(torch.zeros(2, 4, 16, 7, 7))
