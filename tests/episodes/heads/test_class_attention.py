"""Attention over the tokens of one class at a time: the same as class by class, for any shots."""

from __future__ import annotations

import math

import pytest
import torch

from dmgal.episodes.heads.tuples import class_attention, shots_of_classes
from dmgal.errors import DmgalError


@pytest.mark.parametrize("labels", [[0, 1, 2, 1, 0, 2], [1, 1, 0, 1, 2, 1], [0, 0, 0, 0, 0, 0], [5, 4, 3, 2, 1, 0]])
def test_attention_equals_a_loop_over_classes(labels: list[int]) -> None:
    torch.manual_seed(0)
    query, keys, values = torch.randn(3, 4, 6), torch.randn(6, 5, 6), torch.randn(6, 5, 7)
    ours = class_attention(query, keys, values, torch.tensor(labels))
    assert ours.shape == (max(labels) + 1, 3, 4, 7)
    for label, seen in enumerate(ours):
        of_class = [shot for shot, its_label in enumerate(labels) if its_label == label]
        class_keys, class_values = keys[of_class].flatten(0, 1), values[of_class].flatten(0, 1)
        weights = (query @ class_keys.T / math.sqrt(6)).softmax(dim=-1)
        torch.testing.assert_close(seen, weights @ class_values)


def test_shots_are_padded_to_the_largest_class() -> None:
    shots, is_shot = shots_of_classes(torch.tensor([1, 2, 1, 0, 1]), 5)
    assert [row[real].tolist() for row, real in zip(shots, is_shot, strict=True)] == [[3], [0, 2, 4], [1]]
    assert shots.shape == (3, 3)


@pytest.mark.parametrize(("labels", "message"), [([0, 2], "no support video"), ([0], "one label")])
def test_invalid_labels_raise(labels: list[int], message: str) -> None:
    with pytest.raises(DmgalError, match=message):
        shots_of_classes(torch.tensor(labels), 2)
