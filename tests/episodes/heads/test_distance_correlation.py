"""Distance correlation: the released numbers, the definition, and what is refused."""

from __future__ import annotations

import pytest
import torch

from dmgal.episodes.heads import DistanceCorrelation
from dmgal.episodes.heads.distance_correlation import channel_distances
from dmgal.episodes.heads.frame_distance import class_means, frame_distances
from dmgal.errors import DmgalError


def test_golden(read_golden, assert_relatively_close):
    tensors, _, info = read_golden("ts_fsar_distance_correlation")
    head = DistanceCorrelation(info["alpha"])
    support, query = (head.prepare(tensors[name]) for name in ("support", "query"))
    assert_relatively_close(support["frames"], tensors["support_descriptions"])
    assert_relatively_close(query["frames"], tensors["query_descriptions"])
    prototypes = class_means(support["frames"], tensors["labels"])
    cosines = tensors["frame_cosines"]
    assert_relatively_close(1 - frame_distances(query["frames"], prototypes), cosines)
    expected = (cosines.amax(-1).sum(-1) - cosines.shape[-2]) + (cosines.amax(-2).sum(-1) - cosines.shape[-1])
    assert_relatively_close(head.compare(support, tensors["labels"], query).logits, expected)


def test_description_has_the_distances_of_all_pairs_of_channels():
    samples = torch.randn(1, 50, 3, generator=torch.Generator().manual_seed(0))
    distances = torch.stack([(samples[0] - samples[0, :, [c]]).square().mean(0) / 2 for c in range(3)]) + 1e-5
    centering = torch.eye(3) - 1 / 3
    expected = (centering @ distances**0.3 @ centering)[*torch.triu_indices(3, 3)]
    torch.testing.assert_close(channel_distances(samples, 0.3)[0], expected)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_unusable_exponents_raise(alpha):
    with pytest.raises(DmgalError, match="alpha="):
        DistanceCorrelation(alpha)


def test_frame_features_raise():
    with pytest.raises(DmgalError, match="pooling"):
        DistanceCorrelation().prepare(torch.randn(2, 4, 16))
