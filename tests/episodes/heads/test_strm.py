"""STRM: the released numbers of both metrics, what is trained, and the nearest tuples by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from dmgal.backbones.state import VideoState
from dmgal.episodes.episode import TaskTargets
from dmgal.episodes.heads import STRM
from dmgal.episodes.heads.strm import nearest_tuple_distances
from dmgal.errors import DmgalError


@pytest.fixture
def golden(read_golden) -> tuple[STRM, VideoState, VideoState, dict, dict]:
    tensors, weights, info = read_golden("strm_head")
    head = STRM(24, info["frames"], info["cardinality"], width=16).eval()
    head.load_reference_state_dict(weights)
    support, query = (head.prepare(tensors[name].unflatten(0, (-1, info["frames"]))) for name in ("support", "query"))
    return head, support, query, tensors, weights


def test_golden(golden, assert_relatively_close) -> None:
    head, support, query, tensors, _ = golden
    labels = tensors["labels"]
    assert_relatively_close(head.matcher.compare(support, labels, query).logits, tensors["logits"])
    nearest = -nearest_tuple_distances(query["tuples"], support["tuples"], labels)
    assert_relatively_close(nearest, tensors["patch_logits"])
    output = head.compare(support, labels, query)
    assert_relatively_close(output.logits, tensors["logits"] + 0.1 * tensors["patch_logits"])
    assert not output.losses


def test_both_metrics_are_trained_by_their_own_loss(golden) -> None:
    head, support, query, tensors, _ = golden
    answers = torch.tensor([2, 0, 1])
    losses = head.compare(support, tensors["labels"], query, TaskTargets(answers)).losses
    torch.testing.assert_close(losses["cross_entropy"], functional.cross_entropy(tensors["logits"], answers))
    torch.testing.assert_close(losses["nearest_tuples"], functional.cross_entropy(tensors["patch_logits"], answers))
    assert set(losses) == {"cross_entropy", "nearest_tuples"} and head.loss_weights == {"nearest_tuples": 0.1}


def test_released_checkpoints_without_the_unregistered_layer_load(golden) -> None:
    head, _, _, _, weights = golden
    released = {name: tensor for name, tensor in weights.items() if "tuple_classifier" not in name}
    fresh = STRM(24, 8, width=16)
    own = fresh.tuple_embedding.weight.clone()
    fresh.load_reference_state_dict(released)
    assert torch.equal(fresh.tuple_embedding.weight, own)
    assert torch.equal(fresh.enrichment.query.weight, head.enrichment.query.weight)


def test_patch_attention_starts_at_zero() -> None:
    torch.manual_seed(0)
    head, maps = STRM(8, 4, width=8).eval(), torch.randn(1, 4, 8, 5, 5)
    before = head.prepare(maps)["tuples"]
    torch.nn.init.normal_(head.enrichment.value.weight, std=10.0)
    assert torch.equal(head.prepare(maps)["tuples"], before)
    torch.nn.init.ones_(head.enrichment.gamma)
    assert not torch.allclose(head.prepare(maps)["tuples"], before)


@pytest.mark.parametrize("labels", [[0, 1, 0, 1], [1, 0, 0, 0], [3, 1, 0, 2]])
def test_nearest_tuples_by_hand(labels: list[int]) -> None:
    torch.manual_seed(0)
    query, support = torch.randn(2, 3, 5), torch.randn(4, 3, 5)
    ours = nearest_tuple_distances(query, support, torch.tensor(labels))
    for q, c in torch.cartesian_prod(torch.arange(2), torch.arange(max(labels) + 1)).tolist():
        of_class = [shot for shot, label in enumerate(labels) if label == c]
        tuples = support[of_class].flatten(0, 1)
        distances = [(tuples - token).norm(dim=-1).min() for token in query[q]]
        torch.testing.assert_close(ours[q, c], torch.stack(distances).mean())


def test_equal_tuples_have_distance_zero_and_finite_gradients() -> None:
    """A product of matrices would leave the root of its rounding, about 1 at this size."""
    tokens = (1e3 + torch.randn(1, 28, 64, generator=torch.Generator().manual_seed(0))).requires_grad_()
    distance = nearest_tuple_distances(tokens, tokens.repeat(2, 1, 1), torch.tensor([0, 1]))
    distance.sum().backward()
    assert tokens.grad.isfinite().all()
    assert torch.equal(distance, torch.zeros(1, 2))


def test_frame_features_raise() -> None:
    with pytest.raises(DmgalError, match="pooling='map'"):
        STRM(8, 4, width=8).prepare(torch.zeros(2, 4, 8))
