"""The scaled position code and the attention among frames, beside their parts in HyRSM's golden."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from dmgal.episodes.heads.frame_attention import FrameAttention, scaled_position_code
from dmgal.errors import DmgalError


def test_position_code_equals_the_released_models(read_golden) -> None:
    _, weights, _ = read_golden("hyrsm_1shot")
    code = weights["pe.pe"]
    torch.testing.assert_close(scaled_position_code(torch.zeros_like(code)), code)


def test_features_and_position_code_are_scaled() -> None:
    frames = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(0))
    code = scaled_position_code(torch.zeros(1, 4, 7))
    expected = frames * math.sqrt(7 / 5.0) + 0.5 * code
    torch.testing.assert_close(scaled_position_code(frames, feature_scale=5.0, code_scale=0.5), expected)


def test_attention_equals_that_of_torch() -> None:
    torch.manual_seed(0)
    ours, plain = FrameAttention(12, num_heads=3), torch.nn.MultiheadAttention(12, 3, bias=False, batch_first=True)
    with torch.no_grad():
        plain.in_proj_weight.copy_(ours.qkv.weight)
        plain.out_proj.weight.copy_(ours.out.weight)
    frames = torch.randn(2, 5, 12)
    normed = functional.layer_norm(frames, (12,))
    expected = frames + plain(normed, normed, normed)[0] + ours.out.bias
    torch.testing.assert_close(ours(frames), expected)


def test_width_not_divisible_by_heads_raises() -> None:
    with pytest.raises(DmgalError, match="width 12, 5 heads"):
        FrameAttention(12, 5)
