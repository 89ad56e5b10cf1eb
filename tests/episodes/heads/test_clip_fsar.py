"""CLIP-FSAR: the text of support videos, in training and from states, and the loss between videos and texts."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from dmgal.backbones import ClassTexts, VideoState
from dmgal.episodes.episode import TaskTargets
from dmgal.episodes.heads import OTAM, ClipFSAR, TextFusion
from dmgal.errors import DmgalError

LABELS, CLASSES = torch.tensor([0, 1, 1]), torch.tensor([4, 2, 2])


@pytest.fixture
def head():
    return ClipFSAR(16)


@pytest.fixture
def texts():
    return ClassTexts(tuple("abcdef"), functional.normalize(torch.randn(6, 16), dim=-1), 20.0, 0.0, "random")


def released(read_golden, merge):
    """Return the released tensors, the head with its weights, its prepared support and query, and the texts."""
    tensors, weights, info = read_golden("clip_fsar")
    channels = tensors["texts"].shape[-1]
    matcher = OTAM(info["relaxation"], shots="prototype", eps=0.01)
    head = ClipFSAR(channels, info["heads"], info["mlp_dim"] // channels, merge, matcher).eval()
    head.load_reference_state_dict(weights)
    normalized = functional.normalize(tensors["texts"], dim=-1)
    texts = ClassTexts(tuple("abcdefg"), normalized, info["scale"], 0.0, "released")
    support = VideoState(head.prepare(tensors["support"]), class_text=normalized[tensors["support_classes"]])
    return tensors, head, support, head.prepare(tensors["query"]), texts


@pytest.mark.parametrize(("merge", "name"), [("after", "logits"), ("before", "logits_merged_before")])
def test_logits_equal_released_code(read_golden, assert_relatively_close, merge, name):
    tensors, head, support, query, _ = released(read_golden, merge)
    assert_relatively_close(head.compare(support, tensors["labels"], query).logits, tensors[name])


def test_text_logits_and_loss_equal_released_code(read_golden, assert_relatively_close):
    tensors, head, support, query, texts = released(read_golden, "after")
    assert_relatively_close(texts.logits(torch.cat([tensors["support"], tensors["query"]])), tensors["text_logits"])
    head.use_texts(texts, texts.class_names)
    query_classes = torch.tensor([4, 2, 6, 4, 2])
    targets = TaskTargets(torch.tensor([0, 1, 2, 0, 1]), tensors["support_classes"], query_classes)
    output = head.compare(support, tensors["labels"], query, targets)
    classes = torch.cat((tensors["support_classes"], query_classes))
    expected = functional.cross_entropy(tensors["text_logits"], classes)
    assert_relatively_close(output.losses["video_text"], expected)


def test_fusion_equals_released_product_of_probabilities(read_golden):
    """The log of the product is our sum of logits, up to a factor and a constant of each query."""
    tensors, head, _, _, texts = released(read_golden, "after")
    exponent = 0.9
    fusion = TextFusion(head, texts, weight=8 * exponent / (1 - exponent))
    support, query = fusion.prepare(tensors["support"]), fusion.prepare(tensors["query"])
    support = VideoState(support, class_text=texts.features[tensors["support_classes"]])
    logits = fusion.compare(support, tensors["labels"], query).logits * (1 - exponent) / 8
    torch.testing.assert_close(logits.softmax(1), tensors["fused"] / tensors["fused"].sum(1, keepdim=True))


def test_training_and_states_use_the_text_of_the_support(head, texts):
    support, query = head.prepare(torch.randn(3, 4, 16)), head.prepare(torch.randn(2, 4, 16))
    without = head.compare(support, LABELS, query).logits
    brought = VideoState(support, class_text=texts.features[CLASSES])
    expected = head.compare(brought, LABELS, query).logits
    assert not torch.allclose(expected, without)
    head.use_texts(texts, texts.class_names)
    targets = TaskTargets(torch.tensor([0, 1]), CLASSES, torch.tensor([4, 2]))
    torch.testing.assert_close(head.compare(support, LABELS, query, targets).logits, expected)
    torch.testing.assert_close(
        head.compare(brought, LABELS, VideoState(query, class_text=brought["class_text"][:2])).logits, expected
    )


def test_video_text_loss_classifies_mean_frames_among_base_classes(head, texts):
    head.use_texts(texts, ("c", "e", "a"))
    videos = torch.randn(5, 4, 16)
    support, query = head.prepare(videos[:3]), head.prepare(videos[3:])
    targets = TaskTargets(torch.tensor([0, 1]), torch.tensor([0, 1, 1]), torch.tensor([0, 1]))
    loss = head.compare(support, LABELS, query, targets).losses["video_text"]
    logits = texts.logits(videos)[:, [2, 4, 0]]
    torch.testing.assert_close(loss, functional.cross_entropy(logits, torch.tensor([0, 1, 1, 0, 1])))


class Tower(torch.nn.Module):
    """A tower with one learned vector for each class."""

    def __init__(self, texts):
        super().__init__()
        self.names, self.features = texts.class_names, torch.nn.Parameter(texts.features.clone())

    def forward(self, texts):
        return self.features[[self.names.index(name) for name in texts.class_names]]


def test_a_trained_tower_gives_the_texts_of_the_classes_of_a_task(head, texts):
    head.use_texts(texts, texts.class_names)
    support, query = head.prepare(torch.randn(3, 4, 16)), head.prepare(torch.randn(2, 4, 16))
    targets = TaskTargets(torch.tensor([0, 1]), CLASSES, torch.tensor([4, 2]))
    frozen = head.compare(support, LABELS, query, targets)
    head.use_texts(texts, texts.class_names, Tower(texts))
    output = head.compare(support, LABELS, query, targets)
    assert torch.equal(output.logits, frozen.logits)
    videos = torch.cat([support["features"], query["features"]])
    expected = functional.cross_entropy(texts.logits(videos)[:, [2, 4]], torch.tensor([1, 0, 0, 1, 0]))
    torch.testing.assert_close(output.losses["video_text"], expected)
    (output.logits.sum() + output.losses["video_text"]).backward()
    reached = head.text_tower.features.grad.abs().sum(1) > 0
    assert reached.tolist() == [name in "ce" for name in texts.class_names]


def test_text_of_another_width_is_refused(head):
    support = VideoState(head.prepare(torch.randn(3, 4, 16)), class_text=torch.randn(3, 8))
    with pytest.raises(DmgalError, match="text does not fit"):
        head.compare(support, LABELS, head.prepare(torch.randn(2, 4, 16)))
