"""Tuples of frames: all of them in order, and the linear layer that never builds them."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import nn

from dmgal.episodes.heads.tuples import TupleLinear, frame_tuples
from dmgal.errors import DmgalError


@pytest.mark.parametrize(("frames", "cardinality"), [(8, 2), (8, 3), (4, 4), (5, 1)])
def test_tuples_are_all_ordered_combinations(frames: int, cardinality: int) -> None:
    assert frame_tuples(frames, cardinality).tolist() == [list(t) for t in combinations(range(frames), cardinality)]


@pytest.mark.parametrize("cardinality", [1, 2, 3])
def test_layer_equals_a_linear_on_concatenated_frames(cardinality: int) -> None:
    torch.manual_seed(0)
    ours, plain = TupleLinear(6, 5, cardinality), nn.Linear(6 * cardinality, 5)
    ours.load_state_dict(plain.state_dict())
    frames = torch.randn(2, 4, 6)
    tuples = torch.stack([frames[:, list(t)].flatten(1) for t in combinations(range(4), cardinality)], dim=1)
    torch.testing.assert_close(ours(frames), plain(tuples))


@pytest.mark.parametrize(("frames", "cardinality"), [(2, 3), (4, 0)])
def test_too_few_frames_raise(frames: int, cardinality: int) -> None:
    with pytest.raises(DmgalError, match=f"{frames} frames for tuples of {cardinality}"):
        frame_tuples(frames, cardinality)
