"""Contract of the head, and what it measures."""

import pytest
import torch
from dmgal_example_head import MotionCosine

from dmgal.testing import HEAD_CHECKS, HeadCase


@pytest.mark.parametrize("check", HEAD_CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(HeadCase(MotionCosine, video=(8, 16)))


def test_reversed_clip_is_opposite_and_still_content_cancels():
    head, labels, scale = MotionCosine(segments=2), torch.tensor([0]), 10.0
    clip, still = torch.randn(1, 8, 16).cumsum(dim=1), 100 * torch.randn(1, 1, 16)
    motion = {name: head.prepare(video) for name, video in {"plain": clip, "reversed": clip.flip(1)}.items()}
    same, opposite = (head.compare(motion["plain"], labels, motion[name]).logits for name in motion)
    assert 0.8 * scale < same <= scale
    torch.testing.assert_close(opposite, -same)
    shifted = head.prepare(clip + still)["motion"]
    assert torch.cosine_similarity(shifted, motion["plain"]["motion"]).item() == pytest.approx(1.0, abs=1e-4)
