"""DMGAL-FT: the same as its parts in sequence, its size, and what gives it the arrow of time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dmgal.adapters.mga import CrossMotionGuidedAttention, SelfMotionGuidedAttention
from dmgal.backbones.state import VideoState
from dmgal.episodes.heads import OTAM, BiMHM, DmgalFT, TemporalMixer
from dmgal.errors import DmgalError


def awake_head(matcher=None) -> DmgalFT:
    torch.manual_seed(0)
    head = DmgalFT(16, num_frames=4, matcher=matcher).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return head


def maps(videos: int, seed: int) -> Tensor:
    return torch.randn(videos, 4, 16, 7, 7, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("matcher", [BiMHM(center="video", logit_scale=10.0), OTAM(), None])
def test_logits_equal_the_parts_in_sequence(matcher, assert_relatively_close) -> None:
    head, support, query, labels = awake_head(matcher), maps(4, 1), maps(3, 2), torch.tensor([0, 1, 1, 0])
    related = head.cross_attention(*(head.mixer(head.self_attention(videos)) for videos in (support, query)))
    pooled = [head.matcher.prepare(features.mean(dim=(-2, -1))) for features in related]
    expected = head.matcher.compare(pooled[0], labels, pooled[1]).logits
    assert_relatively_close(head.compare(head.prepare(support), labels, head.prepare(query)).logits, expected)


def test_released_weights_of_the_three_parts_load(read_golden, assert_relatively_close) -> None:
    parts = {"s_mga": "dmgal_s_mga", "mixer": "sact_tmixer_frame_mixing", "c_mga": "dmgal_c_mga"}
    weights = {part: read_golden(golden)[1] for part, golden in parts.items()}
    channels, frames = len(weights["mixer"]["fc_d2.bias"]), len(weights["mixer"]["fc_t2.bias"])
    head = DmgalFT(channels, frames, matcher=BiMHM(logit_scale=10.0))
    head.load_reference_state_dict({f"{part}.{name}": t for part, of in weights.items() for name, t in of.items()})
    alone = SelfMotionGuidedAttention(channels), TemporalMixer(frames, channels), CrossMotionGuidedAttention(channels)
    for module, of_part in zip(alone, weights.values(), strict=True):
        module.load_reference_state_dict(of_part)
    loaded = head.self_attention, head.mixer, head.cross_attention
    for module, expected in zip(loaded, alone, strict=True):
        for name, tensor in module.state_dict().items():
            assert tensor.equal(expected.state_dict()[name]), name
    with pytest.raises(DmgalError, match="do not fit DmgalFT"):
        head.load_reference_state_dict({"s_mga.conv1.weight": weights["s_mga"]["conv1.weight"]})


def test_single_videos_are_prepared_as_in_a_batch(assert_relatively_close) -> None:
    head, videos = awake_head().double(), maps(3, 1).double()  # in float32 weights this large miss 1e-5 by rounding
    alone = VideoState.cat([head.prepare(video[None]) for video in videos])
    together = head.prepare(videos)
    for name, tensor in alone.items():
        assert_relatively_close(together[name], tensor, 1e-12)


def test_number_of_parameters_is_that_of_the_paper() -> None:
    parts = DmgalFT(2048)
    millions = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (parts.self_attention, parts.mixer)]
    millions.append(sum(p.numel() for p in parts.cross_attention.parameters()) / 1e6)
    assert [round(number, 2) for number in millions] == [1.79, 8.39, 1.79]
    resnet50 = 23.51
    assert round(resnet50 + sum(p.numel() for p in parts.parameters()) / 1e6, 1) == 35.5


@pytest.mark.parametrize(("mixing", "sees_the_arrow"), [(False, False), (True, True)])
def test_only_mixing_distinguishes_reversed_videos(mixing: bool, sees_the_arrow: bool) -> None:
    """Two classes that are each other's reversal: without weights over frames no query can prefer one of them."""
    head = awake_head()
    if not mixing:
        head.mixer = nn.Identity()
    motion = maps(1, 1)
    support = head.prepare(torch.cat((motion, motion.flip(1))))
    # the cross attention compares equal frame indices, which also tells order, so it is closed here
    with torch.no_grad():
        head.cross_attention.gamma_cross.zero_()
    logits = head.compare(support, torch.tensor([0, 1]), head.prepare(maps(2, 2))).logits
    gap = (logits[:, 0] - logits[:, 1]).abs()
    assert (gap > 1e-3).all() if sees_the_arrow else (gap < 1e-4).all()
