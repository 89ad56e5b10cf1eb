"""Small random backbones of every kind that adapters go into, and calls that treat them alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import open_clip
import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

FRAMES, SIZE, WIDTH, BLOCKS = 4, 32, 32, 3
_VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 8,
    "projection_dim": 16,
}
_TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}


def _open_clip() -> open_clip.CLIP:
    vision = {"image_size": SIZE, "layers": BLOCKS, "width": WIDTH, "head_width": 16, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    return open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text)


@dataclass(frozen=True)
class Backbone:
    """How to make a backbone (the same weights each time) and how to get image features from it."""

    make: Callable[[], nn.Module]
    features: Callable[..., Tensor]


def _seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def seeded() -> nn.Module:
        torch.manual_seed(0)
        return (
            make().eval().requires_grad_(False)
        )  # frozen, as PEFT leaves it: torch picks its attention kernel by that

    return seeded


BACKBONES = {
    "open_clip visual": Backbone(_seeded(lambda: _open_clip().visual), lambda model, x, **layout: model(x, **layout)),
    "transformers vision": Backbone(
        _seeded(lambda: CLIPVisionModel(CLIPVisionConfig(**_VISION))),
        lambda model, x, **layout: model(pixel_values=x, **layout).pooler_output,
    ),
    "transformers vision with projection": Backbone(
        _seeded(lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**_VISION))),
        lambda model, x, **layout: model(pixel_values=x, **layout).image_embeds,
    ),
    "open_clip whole": Backbone(_seeded(_open_clip), lambda model, x, **layout: _root(model).visual(x, **layout)),
    "transformers whole": Backbone(
        _seeded(lambda: CLIPModel(CLIPConfig(vision_config=_VISION, text_config=_TEXT, projection_dim=16))),
        lambda model, x, **layout: _root(model).visual_projection(
            _root(model).vision_model(pixel_values=x, **layout).pooler_output
        ),
    ),
}


def _root(model: nn.Module) -> nn.Module:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@pytest.fixture
def backbones() -> dict[str, Backbone]:
    return BACKBONES


@pytest.fixture
def open_clip_visual() -> Backbone:
    return BACKBONES["open_clip visual"]


@pytest.fixture
def videos() -> Tensor:
    """Three support and two query videos ``(5, T, 3, H, W)``."""
    return torch.randn(5, FRAMES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def perturb() -> Callable[[nn.Module], None]:
    """Moves every adapter weight away from where it starts."""

    def perturb(model: nn.Module) -> None:
        generator = torch.Generator().manual_seed(2)
        for name, parameter in model.named_parameters():
            if "dmgal_" in name:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)

    return perturb
