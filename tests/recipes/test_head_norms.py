"""Calibration of a new head's batch norms on the first task."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dmgal.backbones import FrameEncoder, load_backbone
from dmgal.episodes import Episode, FewShotRecognizer
from dmgal.episodes.heads import BiMHM, DmgalFT, MoLo
from dmgal.recipes.training.step import measure_head_norms


def task(size: int) -> Episode:
    generator = torch.Generator().manual_seed(0)
    support, query = (torch.randint(0, 256, (2, 4, 3, size, size), generator=generator).byte() for _ in range(2))
    return Episode(support, torch.arange(2), query, torch.arange(2), ("a", "b"))


def recognizer(head) -> FewShotRecognizer:
    torch.manual_seed(0)
    encoder = FrameEncoder(load_backbone("tiny-clip"), pooling="map")
    return FewShotRecognizer(encoder, head(encoder.spec.width))


@pytest.mark.parametrize("head", [lambda width: DmgalFT(width, 4), MoLo], ids=["dmgal_ft", "molo"])
def test_calibrated_norms_give_mean_zero_and_variance_one(head):
    model = recognizer(head)
    episode = task(model.encoder.image_size[0])
    norms = [module for module in model.head.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta, random_state = [norm.momentum for norm in norms], torch.get_rng_state()
    assert measure_head_norms(model, episode) == len(norms) > 2
    assert torch.get_rng_state().equal(random_state)
    assert [norm.momentum for norm in norms] == momenta
    assert all(norm.num_batches_tracked >= 1 and not norm.running_mean.eq(0).all() for norm in norms)
    first = norms[0]
    seen = []
    first.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model.eval()
    with torch.no_grad():
        model.encode(torch.cat((episode.support, episode.query)))
    if seen:  # MoLo draws in training only
        normal = torch.cat(seen)
        torch.testing.assert_close(normal.mean(dim=(0, 2, 3)), torch.zeros(len(first.running_mean)), atol=1e-4, rtol=0)
        torch.testing.assert_close(normal.var(dim=(0, 2, 3)), torch.ones(len(first.running_mean)), atol=0.01, rtol=0)
    assert measure_head_norms(model, episode) == 0, "norms with statistics are left alone"


def test_head_without_norms_is_unchanged():
    model = recognizer(lambda _: BiMHM())
    assert measure_head_norms(model, task(model.encoder.image_size[0])) == 0
