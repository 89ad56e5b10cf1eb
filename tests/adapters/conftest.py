"""Fixtures of the adapter tests: tiny backbones, videos, and a perturbation of adapter weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_backbones import TINY_BACKBONES, TinyBackbone
from torch import Tensor, nn


@pytest.fixture
def backbones() -> dict[str, TinyBackbone]:
    return TINY_BACKBONES


@pytest.fixture
def open_clip_visual() -> TinyBackbone:
    return TINY_BACKBONES["open_clip visual"]


@pytest.fixture
def videos() -> Tensor:
    """Three support and two query videos ``(5, T, 3, H, W)``."""
    return TINY_BACKBONES["open_clip visual"].videos(5)


@pytest.fixture
def perturb() -> Callable[[nn.Module], None]:
    """Return a function that moves every adapter weight away from its initial value."""

    def perturb(model: nn.Module) -> None:
        generator = torch.Generator().manual_seed(2)
        for name, parameter in model.named_parameters():
            if "dmgal_" in name:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)

    return perturb
