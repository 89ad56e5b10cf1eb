"""Loading by name: what is bundled and local works offline, everything else says what it wants."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from dmgal.backbones import FrameEncoder, load_backbone, make_encoder
from dmgal.errors import DmgalError

VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_a_folder_in_the_transformers_format(tmp_path):
    torch.manual_seed(0)
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, image_size=16, patch_size=8, projection_dim=8))
    model.save_pretrained(tmp_path)
    encoder = FrameEncoder(load_backbone(str(tmp_path)))
    frames = torch.randn(2, 1, 3, 16, 16)
    expected = model.eval()(frames[:, 0]).image_embeds
    torch.testing.assert_close(encoder.encode(frames)["features"][:, 0], expected, rtol=0, atol=1e-5)


def test_an_open_clip_model_by_name_without_weights():
    assert FrameEncoder(load_backbone("open_clip:ViT-S-32-alt")).spec.num_blocks == 12


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", "tiny-clip, open_clip:MODEL"),
        ("open_clip:", "tiny-clip, open_clip:MODEL"),
        ("open_clip:ViT-Z-99", "no such model"),
        ("hf:nobody/nothing", "go online once"),
    ],
)
def test_what_cannot_be_loaded_says_what_can(name, message):
    with pytest.raises(DmgalError, match=message):
        load_backbone(name)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(DmgalError, match=r"config\.json"):
        load_backbone(str(tmp_path))


def test_a_real_resnet_gives_maps_of_normalized_images(test_data):
    folder = test_data / "weights" / "resnet50-imagenet"
    backbone = load_backbone(str(folder))
    encoder = make_encoder(backbone, "map")
    assert (encoder.width, encoder.image_size) == (2048, (224, 224))
    frames = torch.randint(0, 256, (1, 2, 3, 224, 224), dtype=torch.uint8)
    maps = encoder.encode(frames)["features"]
    assert maps.shape == (1, 2, 2048, 7, 7) and maps.dtype == torch.float32
    mean = torch.tensor(backbone.dmgal_preprocessing["image_mean"]).view(3, 1, 1)
    expected = backbone((frames[0] / 255 - mean) * 255).last_hidden_state
    torch.testing.assert_close(maps[0], expected, rtol=1e-4, atol=1e-4)
