"""Test that open_clip's frozen attention projects all tokens in one product in training and under autocast."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from tiny_backbones import open_clip_model
from torch.utils._python_dispatch import TorchDispatchMode

from dmgal.backbones import FrameEncoder


class BatchedProducts(TorchDispatchMode):
    """A counter of batched matrix products inside the context."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.bmm.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("training", "autocast"), [(True, False), (False, True)], ids=["training", "autocast"])
def test_one_product_gives_equal_features_and_leaves_no_hooks(training, autocast):
    torch.manual_seed(0)
    encoder = FrameEncoder(open_clip_model().visual.requires_grad_(False)).eval()
    height, width = encoder.image_size
    videos = torch.randn(2, 3, 3, height, width)
    context = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
    expected = encoder.encode(videos)["features"]
    encoder.train(training)
    with context, BatchedProducts() as products:
        features = encoder.encode(videos)["features"]
    assert products.count == 0
    torch.testing.assert_close(features.float(), expected, rtol=0, atol=0.05 if autocast else 1e-5)
    assert not any(module._forward_pre_hooks for module in encoder.modules())
