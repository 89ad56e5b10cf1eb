"""Frame-aligned matching: the diagonal, and nothing else."""

from __future__ import annotations

import pytest
import torch

from dmgal.episodes.heads import FrameAligned
from dmgal.episodes.heads.frame_distance import frame_aligned
from dmgal.errors import DmgalError


def test_distance_is_the_sum_of_the_diagonal() -> None:
    distances = torch.arange(18.0).view(2, 3, 3)
    assert frame_aligned(distances).tolist() == [0 + 4 + 8, 9 + 13 + 17]


def test_scaled_distance_is_averaged_over_frames() -> None:
    video = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))
    head = FrameAligned(logit_scale=10.0, eps=0.0)
    logits = head.compare(head.prepare(-video), torch.tensor([0]), head.prepare(video)).logits
    assert logits.item() == pytest.approx(-20.0, rel=1e-5)


def test_different_numbers_of_frames_raise() -> None:
    with pytest.raises(DmgalError, match="4 support frames, 3 query frames"):
        frame_aligned(torch.zeros(2, 2, 3, 4))
