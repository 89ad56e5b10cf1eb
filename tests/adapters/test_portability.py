"""Adapters trained on one library's CLIP work on another's, because blocks are identified by index."""

from __future__ import annotations

from functools import partial

import peft
import pytest
import torch
from tiny_backbones import TINY_BACKBONES, open_clip_model
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from dmgal.adapters import AIMConfig, BitFitConfig, D2STConfig, DmgalConfig, STAdapterConfig
from dmgal.errors import DmgalError

LAYOUT = {"num_support": 3}
PORTABLE = {
    "DMGAL": DmgalConfig(num_frames=4),
    "ST-Adapter": STAdapterConfig(num_frames=4, places="attention+mlp"),
    "AIM": AIMConfig(num_frames=4),
    "D2ST": D2STConfig(num_frames=4),
}


def same_clip_of_transformers(visual: nn.Module) -> nn.Module:
    """open_clip's visual tower with the layers of transformers and the same weights."""
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=128, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8,
        projection_dim=16, hidden_act="gelu",
    )  # fmt: skip
    model = CLIPVisionModelWithProjection(config)
    theirs = visual.state_dict()
    renamed = {
        "embeddings.class_embedding": theirs["class_embedding"],
        "embeddings.patch_embedding.weight": theirs["conv1.weight"],
        "embeddings.position_embedding.weight": theirs["positional_embedding"],
        "visual_projection.weight": theirs["proj"].T,
    }
    for ours, name in {"pre_layrnorm": "ln_pre", "post_layernorm": "ln_post"}.items():
        renamed |= {f"{ours}.{leaf}": theirs[f"{name}.{leaf}"] for leaf in ("weight", "bias")}
    parts = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    parts["self_attn.out_proj"] = "attn.out_proj"
    for index in range(3):
        here, there = f"encoder.layers.{index}", f"transformer.resblocks.{index}"
        for leaf in ("weight", "bias"):
            for ours, name in parts.items():
                renamed[f"{here}.{ours}.{leaf}"] = theirs[f"{there}.{name}.{leaf}"]
            thirds = theirs[f"{there}.attn.in_proj_{leaf}"].chunk(3)
            for ours, tensor in zip(("q_proj", "k_proj", "v_proj"), thirds, strict=True):
                renamed[f"{here}.self_attn.{ours}.{leaf}"] = tensor
    prefixed = {k if k.startswith("visual") else f"vision_model.{k}": v for k, v in renamed.items()}
    missing, unknown = model.load_state_dict(prefixed, strict=False)
    assert not unknown and all("position_ids" in name for name in missing), (missing, unknown)
    return model


OPEN_CLIP = TINY_BACKBONES["open_clip visual"]


def embeds(model: nn.Module, x: Tensor, **layout: int) -> Tensor:
    return model(pixel_values=x, **layout).image_embeds


def make_transformers() -> nn.Module:
    return same_clip_of_transformers(OPEN_CLIP.make()).eval().requires_grad_(False)


def perturbed(model: nn.Module) -> nn.Module:
    torch.manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", PORTABLE)
def test_adapter_moves_between_libraries(name, tmp_path):
    videos = OPEN_CLIP.videos()
    trained = perturbed(peft.get_peft_model(OPEN_CLIP.make(), PORTABLE[name]))
    expected = OPEN_CLIP.features(trained, videos, **LAYOUT)
    assert (expected - OPEN_CLIP.features(OPEN_CLIP.make(), videos.flatten(0, 1))).abs().max() > 1e-2
    trained.save_pretrained(tmp_path / "open_clip")
    moved = peft.PeftModel.from_pretrained(make_transformers(), tmp_path / "open_clip").eval()
    torch.testing.assert_close(embeds(moved, videos, **LAYOUT), expected, rtol=0, atol=1e-5)

    moved.save_pretrained(tmp_path / "transformers")
    # trainable, as the first was: torch picks its kernels by that
    load = partial(peft.PeftModel.from_pretrained, model_id=tmp_path / "transformers", is_trainable=True)
    assert torch.equal(OPEN_CLIP.features(load(OPEN_CLIP.make()).eval(), videos, **LAYOUT), expected)
    whole = load(_whole_with(OPEN_CLIP.make())).eval()
    assert torch.equal(whole.get_base_model().visual(videos, **LAYOUT), expected)


def test_bitfit_does_not_move_between_libraries(tmp_path):
    perturbed(peft.get_peft_model(OPEN_CLIP.make(), BitFitConfig())).save_pretrained(tmp_path)
    with pytest.raises(DmgalError, match="same library"):
        peft.PeftModel.from_pretrained(make_transformers(), tmp_path)


def _whole_with(visual: nn.Module) -> nn.Module:
    model = open_clip_model()
    model.visual.load_state_dict(visual.state_dict())
    return model.eval().requires_grad_(False)


def test_copied_clip_equals_its_source():
    images = OPEN_CLIP.videos().flatten(0, 1)
    with torch.no_grad():
        expected = OPEN_CLIP.make()(images)
        torch.testing.assert_close(embeds(make_transformers(), images), expected, rtol=0, atol=1e-5)
