"""CLIP-FSAR: the text of support videos, in training and from states, and the loss between videos and texts."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from dmgal.backbones import ClassTexts, VideoState
from dmgal.episodes.episode import TaskTargets
from dmgal.episodes.heads import ClipFSAR
from dmgal.errors import DmgalError

LABELS, CLASSES = torch.tensor([0, 1, 1]), torch.tensor([4, 2, 2])


@pytest.fixture
def head():
    return ClipFSAR(16)


@pytest.fixture
def texts():
    return ClassTexts(tuple("abcdef"), functional.normalize(torch.randn(6, 16), dim=-1), 20.0, 0.0, "random")


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


def test_text_of_another_width_is_refused(head):
    support = VideoState(head.prepare(torch.randn(3, 4, 16)), class_text=torch.randn(3, 8))
    with pytest.raises(DmgalError, match="text does not fit"):
        head.compare(support, LABELS, head.prepare(torch.randn(2, 4, 16)))
