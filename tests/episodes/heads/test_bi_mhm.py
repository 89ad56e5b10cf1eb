"""Bi-MHM: the released numbers and its blindness to order."""

from __future__ import annotations

import torch

from dmgal.episodes.heads import BiMHM
from dmgal.episodes.heads.frame_distance import bi_mhm, frame_distances


def test_golden(read_golden, assert_relatively_close) -> None:
    tensors, _, _ = read_golden("bi_mhm")
    head = BiMHM()
    output = head.compare(head.prepare(tensors["support"]), tensors["labels"], head.prepare(tensors["query"]))
    assert_relatively_close(output.logits, tensors["logits"])
    assert not output.losses


def test_distances_computed_by_hand() -> None:
    distances = torch.tensor([[1.0, 5.0, 4.0], [2.0, 3.0, 6.0]])
    assert bi_mhm(distances).item() == (1 + 2) + (1 + 3 + 4)


def test_order_of_frames_does_not_change_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    query, support = (torch.randn(2, 5, 8, generator=generator) for _ in range(2))
    expected = bi_mhm(frame_distances(query, support))
    for order in (torch.arange(4, -1, -1), torch.randperm(5, generator=generator)):
        torch.testing.assert_close(bi_mhm(frame_distances(query[:, order], support)), expected)
        torch.testing.assert_close(bi_mhm(frame_distances(query, support[:, order])), expected)
