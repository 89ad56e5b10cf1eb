"""Frozen attention of open_clip projects all tokens in one product, in training and under autocast."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from tiny_backbones import open_clip_model
from torch.utils._python_dispatch import TorchDispatchMode

from dmgal.backbones import FrameEncoder


class BatchedProducts(TorchDispatchMode):
    """Counts them while it is entered."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.bmm.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("training", "autocast"), [(True, False), (False, True)], ids=["training", "autocast"])
def test_it_projects_at_once_gives_the_same_and_leaves_no_trace(training, autocast):
    torch.manual_seed(0)
    encoder = FrameEncoder(open_clip_model().visual.requires_grad_(False)).eval()
    height, width = encoder.image_size
    videos = torch.randn(2, 3, 3, height, width)
    region = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
    expected = encoder.encode(videos)["features"]
    encoder.train(training)
    with region, BatchedProducts() as products:
        features = encoder.encode(videos)["features"]
    assert products.count == 0
    torch.testing.assert_close(features.float(), expected, rtol=0, atol=0.05 if autocast else 1e-5)
    assert not any(module._forward_pre_hooks for module in encoder.modules())
