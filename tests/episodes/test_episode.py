"""Episode construction rejects inconsistent parts; copies to other devices are unchanged."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dmgal.episodes.episode import Episode, EpisodeOutput
from dmgal.errors import DmgalError


def build(**changes) -> Episode:
    parts = {
        "support": torch.zeros(3, 4, 3, 8, 8, dtype=torch.uint8),
        "support_labels": torch.tensor([0, 1, 1]),
        "query": torch.ones(2, 4, 3, 8, 8, dtype=torch.uint8),
        "query_labels": torch.tensor([1, 0]),
        "class_names": ("push", "pull"),
    }
    return Episode(**(parts | changes))


def test_properties():
    episode = build()
    assert (episode.n_way, episode.shots, episode.num_support, episode.num_query, episode.num_frames) == (
        2,
        (1, 2),
        3,
        2,
        4,
    )
    with pytest.raises(DmgalError, match=r"shots per class \(1, 2\)"):
        _ = episode.k_shot
    equal = build(support=torch.zeros(4, 4, 3, 8, 8, dtype=torch.uint8), support_labels=torch.tensor([0, 1, 1, 0]))
    assert equal.k_shot == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"support": torch.zeros(3, 4, 8, 8)}, r"support of shape \(3, 4, 8, 8\)"),
        ({"support": torch.zeros(3, 4, 1, 8, 8)}, r"support of shape"),
        ({"query": torch.zeros(0, 4, 3, 8, 8)}, r"query of shape"),
        ({"query": torch.zeros(2, 5, 3, 8, 8, dtype=torch.uint8)}, "same transform"),
        ({"query": torch.zeros(2, 4, 3, 8, 8)}, "float32"),
        ({"support_labels": torch.tensor([0, 1])}, r"support_labels \(2,\)"),
        ({"query_labels": torch.tensor([0, 1], dtype=torch.int32)}, "int32"),
        ({"query_labels": torch.tensor([0, 2])}, "query_labels from 0 to 2"),
        ({"support_labels": torch.tensor([0, 1, -1])}, "support_labels from -1 to 1"),
        ({"support_labels": torch.tensor([1, 1, 1])}, "no support video of 'push'"),
        ({"class_names": ("push", "pull", "lift")}, "no support video of 'lift'"),
        ({"class_names": ()}, "labels"),
        ({"classes": torch.tensor([4])}, r"classes \(1,\)"),
        ({"classes": torch.tensor([4.0, 2.0])}, "float32"),
    ],
)
def test_inconsistent_parts_are_rejected(changes, message):
    with pytest.raises(DmgalError, match=message) as caught:
        build(**changes)
    assert all(part in str(caught.value) for part in ("received:", "expected:", "what to do:"))


def test_frozen_and_prints_shapes_only():
    episode = build()
    with pytest.raises(dataclasses.FrozenInstanceError):
        episode.support = episode.query  # type: ignore[misc]
    text = repr(episode)
    assert "(3, 4, 3, 8, 8)" in text and "push" in text
    assert "tensor" not in text and len(text) < 250


def test_moves_without_another_check(monkeypatch):
    episode = build()
    monkeypatch.setattr(Episode, "__post_init__", lambda self: pytest.fail("checked twice"))
    moved = episode.to("cpu", non_blocking=True)
    assert isinstance(moved, Episode) and moved.class_names == episode.class_names
    for name in ("support", "support_labels", "query", "query_labels"):
        assert torch.equal(getattr(moved, name), getattr(episode, name))
        assert getattr(moved, name).dtype == getattr(episode, name).dtype
    meta = episode.to("meta")
    assert {meta.support.device.type, meta.query_labels.device.type} == {"meta"}
    assert episode.support.device.type == "cpu"


def test_targets_name_the_class_of_every_video():
    assert build().targets.support_classes is None and build().targets.query_classes is None
    targets = build(classes=torch.tensor([7, 3])).to("cpu").targets
    assert targets.query_labels.tolist() == [1, 0]
    assert targets.support_classes.tolist() == [7, 3, 3] and targets.query_classes.tolist() == [3, 7]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_memory_reaches_the_device():
    episode = build()
    pinned = episode.pin_memory()
    assert pinned.support.is_pinned() and pinned.query_labels.is_pinned()
    moved = pinned.to("cuda", non_blocking=True)
    assert torch.equal(moved.query.cpu(), episode.query)


def test_output_has_no_losses_unless_given():
    one, two = EpisodeOutput(torch.zeros(2, 5)), EpisodeOutput(torch.zeros(2, 5))
    one.losses["contrast"] = torch.tensor(1.0)
    assert two.losses == {}
