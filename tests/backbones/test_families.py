"""Contract of every supported backbone, and facts about each family that the contract cannot know."""

from __future__ import annotations

import copy
from functools import partial

import peft
import pytest
import tiny_backbones
import torch
import transformers
from open_clip.timm_model import TimmModel
from timm.layers import HybridEmbed
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from tiny_backbones import FRAMES, SIZE, TINY_BACKBONES, WIDTH, TinyBackbone, direct, pooled, root, tiny
from torch import nn
from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

from dmgal.adapters import SmgaConfig
from dmgal.backbones import FrameEncoder, find_spec, load_backbone
from dmgal.backbones.preprocessing import HALF, IMAGENET, OPENAI
from dmgal.errors import DmgalError
from dmgal.testing import BACKBONE_CHECKS, BackboneCase


def _siglip(model, x, **layout):
    return root(model).vision_model(pixel_values=x, **layout).pooler_output


def _last_class_token(model, x, **layout):
    return model(pixel_values=x, **layout).last_hidden_state[:, 0]


def _around_timm():
    tower = TimmModel("test_vit", embed_dim=6, pool="token", proj="linear")
    tower.trunk = tiny_backbones.timm_vit(num_classes=8)  # open_clip takes trunks by name only
    tower.head = torch.nn.Linear(8, 6, bias=False)
    return tower


def _naflex(**options):
    sizes = {"patch_size": 8, "embed_dim": WIDTH, "depth": 3, "num_heads": 2, "pos_embed_grid_size": (4, 4)}
    return NaFlexVit(NaFlexVitCfg(**sizes, **options), num_classes=0)


def _siglip2_config():
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    return transformers.Siglip2VisionConfig(**sizes, patch_size=8, num_patches=16)


_siglip2 = transformers.Siglip2VisionModel


def _siglip2_whole():
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    texts = {**text, "vocab_size": 50, "projection_size": WIDTH, "bos_token_id": 0, "eos_token_id": 1}
    config = transformers.Siglip2Config(vision_config=_siglip2_config().to_dict(), text_config=texts)
    return transformers.Siglip2Model(config)


def _siglip2_of_another_size():
    model = _siglip2(_siglip2_config())
    model.dmgal_preprocessing = {"size": {"height": SIZE, "width": 48}}
    return model


def siglip2_features(model, x, **layout):
    """Return the library's own features of images, or of videos with adapters, which take the number of frames."""
    images, frames = (x.flatten(0, 1), {"num_frames": x.shape[1]}) if x.ndim == 5 else (x, {})
    patches = torch.stack([convert_image_to_patches(image, 8) for image in images])
    inputs = {
        "pixel_values": patches,
        "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.int32),
        "spatial_shapes": torch.tensor([[x.shape[-2] // 8, x.shape[-1] // 8]] * len(images)),
    }
    whole = isinstance(root(model), transformers.Siglip2Model)
    tower = root(model).vision_model if whole else model
    return tower(**inputs, **frames, **layout).pooler_output


def _hybrid():
    """Return a ViT on the maps of a small convolutional network, as timm's ``vit_small_r26_s32_224``."""
    parts = [nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 2, 2)]
    return tiny_backbones.timm_vit(embed_layer=partial(HybridEmbed, backbone=nn.Sequential(*parts)), patch_size=1)


MORE = {
    "SigLIP whole": tiny(lambda: tiny_backbones.of_transformers_whole("Siglip"), _siglip),
    "ViT without pooler": tiny(
        lambda: transformers.ViTModel(_vit_config(), add_pooling_layer=False), _last_class_token
    ),
    "ViT non-square": tiny(lambda: tiny_backbones.of_transformers("ViT", image_size=[SIZE, 48]), pooled, (SIZE, 48)),
    "DINOv3 non-square": tiny(
        lambda: tiny_backbones.of_transformers("DINOv3ViT", num_register_tokens=0, image_size=[SIZE, 48]),
        pooled,
        (SIZE, 48),
    ),
    "timm ViT average": tiny(lambda: tiny_backbones.timm_vit(global_pool="avg", init_values=0.5), direct),
    "timm ViT attention pool": tiny(lambda: tiny_backbones.timm_vit(global_pool="map", class_token=False), direct),
    "timm ViT projected": tiny(lambda: tiny_backbones.timm_vit(num_classes=7, pre_norm=True), direct),
    "timm ViT non-square": tiny(lambda: tiny_backbones.timm_vit(img_size=(SIZE, 48)), direct, (SIZE, 48)),
    "timm EVA mixed": tiny(lambda: tiny_backbones.timm_eva(rope_type="mixed", global_pool="token"), direct),
    "timm EVA of any size": tiny(lambda: tiny_backbones.timm_eva(rope_type="dinov3", dynamic_img_size=True), direct),
    "open_clip average": tiny(lambda: tiny_backbones.open_clip_model(pool_type="avg").visual, direct),
    "open_clip custom block": tiny(lambda: tiny_backbones.open_clip_model(qk_norm=True).visual, direct),
    "open_clip around timm": tiny(_around_timm, direct),
    "timm hybrid ViT": tiny(_hybrid, direct),
    "timm NaFlex": tiny(lambda: _naflex(class_token=True, reg_tokens=1, global_pool="token"), direct),
    "timm NaFlex attention pool": tiny(lambda: _naflex(pos_embed="factorized"), direct),
    "timm NaFlex rotary": tiny(lambda: _naflex(rope_type="axial", global_pool="avg"), direct),
    "timm NaFlex mixed": tiny(lambda: _naflex(rope_type="mixed", global_pool="avg"), direct),
    "SigLIP 2": tiny(lambda: _siglip2(_siglip2_config()), siglip2_features),
    "SigLIP 2 whole": tiny(_siglip2_whole, siglip2_features),
    "SigLIP 2 non-square": tiny(_siglip2_of_another_size, siglip2_features, (SIZE, 48)),
    "tiny-clip": TinyBackbone(lambda: load_backbone("tiny-clip").requires_grad_(False), direct, (48, 48)),
}
BACKBONES = TINY_BACKBONES | MORE
QUICK = [*TINY_BACKBONES, "tiny-clip"]
"""The adapters' contract goes through the same functions for the others."""
PREFIX_TOKENS = {
    "SigLIP": 0,
    "SigLIP whole": 0,
    "DeiT": 2,
    "DINOv2 registers": 3,
    "DINOv3": 3,
    "timm ViT registers": 3,
    "timm ViT attention pool": 0,
    "timm NaFlex": 2,
    "timm NaFlex attention pool": 0,
    "timm NaFlex rotary": 0,
    "timm NaFlex mixed": 0,
    "SigLIP 2": 0,
    "SigLIP 2 whole": 0,
    "SigLIP 2 non-square": 0,
    "hand-written (N,B,C)": 3,
    "hand-written non-square": 0,
}
POOLS_PATCHES = {
    "SigLIP",
    "SigLIP whole",
    "timm EVA",
    "timm EVA of any size",
    "timm ViT average",
    "timm ViT attention pool",
    "timm NaFlex attention pool",
    "timm NaFlex rotary",
    "timm NaFlex mixed",
    "SigLIP 2",
    "SigLIP 2 whole",
    "SigLIP 2 non-square",
    "open_clip average",
    "hand-written non-square",
}
ROTARY = {
    "DINOv3",
    "DINOv3 non-square",
    "timm EVA",
    "timm EVA mixed",
    "timm EVA of any size",
    "timm NaFlex rotary",
    "timm NaFlex mixed",
}
PROJECTED = {
    "transformers CLIP projected": 16,
    "transformers CLIP whole": 16,
    "open_clip visual": 16,
    "open_clip whole": 16,
    "open_clip average": 16,
    "open_clip custom block": 16,
    "hand-written (N,B,C)": 16,
    "timm ViT projected": 7,
    "open_clip around timm": 6,
}


def _vit_config():
    return transformers.ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=SIZE,
        patch_size=8,
    )


@pytest.mark.parametrize("check", BACKBONE_CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in BACKBONES if n not in QUICK)]
)
def test_contract(name, check):
    backbone = BACKBONES[name]
    check(BackboneCase(backbone.make, backbone.videos(2, frames=3), backbone.features))


@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "tiny-clip"])
def test_spec_knows_the_family(name):
    model = BACKBONES[name].make()
    spec = find_spec(model)
    assert (spec.num_blocks, spec.width, spec.image_size) == (3, WIDTH, BACKBONES[name].size)
    assert spec.num_prefix_tokens == PREFIX_TOKENS.get(name, 1)
    assert spec.pools_prefix == (name not in POOLS_PATCHES)
    assert spec.batch_first == (name != "hand-written (N,B,C)")
    assert spec.rotary == (name in ROTARY) == (spec.attend is None)
    assert None not in vars(spec.parts).values()
    assert FrameEncoder(model).feature_width == PROJECTED.get(name, WIDTH)


@torch.no_grad()
@pytest.mark.parametrize("name", MORE)  # the others are tested by the adapters' contract
def test_adapter_starts_as_identity_and_encoder_equals_forward(name):
    backbone = BACKBONES[name]
    videos = backbone.videos(2)
    expected = backbone.features(backbone.make(), videos.flatten(0, 1))
    model = peft.get_peft_model(backbone.make(), SmgaConfig(num_frames=FRAMES)).eval()
    assert torch.equal(backbone.features(model, videos), expected)
    assert torch.equal(backbone.features(model, videos.flatten(0, 1), num_frames=FRAMES), expected)
    assert torch.equal(FrameEncoder(model).encode(videos)["features"].flatten(0, 1), expected)
    generator = torch.Generator().manual_seed(2)
    for parameter_name, parameter in model.named_parameters():
        if "dmgal_" in parameter_name:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    straight = backbone.features(model, videos)
    assert (straight - expected).abs().max() > 1e-3
    encoded = FrameEncoder(model).encode(videos)["features"].flatten(0, 1)
    torch.testing.assert_close(encoded, straight, rtol=0, atol=1e-5)
    assert torch.equal(backbone.features(copy.deepcopy(model), videos), straight)


ON_IMAGENET = ("DeiT", "ViT-MAE", "DINOv3")


@pytest.mark.parametrize(
    ("name", "normalization"),
    [("transformers CLIP", OPENAI), ("SigLIP", HALF), ("ViT", HALF), *((name, IMAGENET) for name in ON_IMAGENET)],
)
def test_normalization_matches_the_weights(name, normalization):
    spec = find_spec(BACKBONES[name].make())
    assert (spec.mean, spec.std) == normalization


@torch.no_grad()
@pytest.mark.parametrize("name", ["SigLIP 2", "SigLIP 2 whole"])
def test_saved_naflex_model_is_loaded(tmp_path, name):
    model, videos = BACKBONES[name].make(), BACKBONES[name].videos()
    model.save_pretrained(tmp_path)
    loaded = load_backbone(f"hf:{tmp_path}")
    assert torch.equal(*(FrameEncoder(one).encode(videos)["features"] for one in (loaded, model)))


@torch.no_grad()
def test_masked_autoencoder_sees_all_patches():
    backbone = BACKBONES["ViT-MAE"]
    unmasked, videos = backbone.make(), backbone.videos()
    masked = copy.deepcopy(unmasked)
    masked.config.mask_ratio = 0.75
    assert torch.equal(*(FrameEncoder(model).encode(videos)["features"] for model in (masked, unmasked)))
    assert masked(videos[0]).last_hidden_state.shape[1] < unmasked(videos[0]).last_hidden_state.shape[1]


def test_preprocessing_config_overrides_defaults():
    model = tiny_backbones.timm_vit()
    model.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    assert find_spec(model).std == (0.4, 0.5, 0.6)
    model = tiny_backbones.of_transformers("Dinov2")
    model.dmgal_preprocessing = {"image_mean": [0.1, 0.2, 0.3], "crop_size": {"height": 48, "width": 64}}
    spec = find_spec(model)
    assert (spec.mean, spec.std) == ((0.1, 0.2, 0.3), IMAGENET.std)
    assert (spec.image_size, spec.grid) == ((48, 64), (6, 8))
    videos = torch.randn(1, 2, 3, 48, 64)
    expected = model.eval()(pixel_values=videos[0]).pooler_output
    torch.testing.assert_close(FrameEncoder(model).encode(videos)["features"][0], expected)


@torch.no_grad()
@pytest.mark.parametrize("size", [(48, 48), (16, 64), (SIZE, 2 * SIZE)])
@pytest.mark.parametrize("name", ["DINOv3", "DINOv2", "timm EVA"])
def test_images_of_another_size_give_the_models_own_features_or_raise(name, size):
    model = TINY_BACKBONES[name].make().eval()
    images = torch.randn(2, 3, *size)
    encoder = FrameEncoder(model)
    if encoder.spec.rotary:
        with pytest.raises(DmgalError, match=r"(?s)another size.*rotary positions"):
            encoder.encode(images[None])
    else:
        own = model(images).pooler_output
        torch.testing.assert_close(encoder.encode(images[None])["features"][0], own, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 64), (64, 16)])
def test_grid_of_other_sides_and_equal_tokens_raises(size):
    images = torch.randn(4, 3, *size)
    model = peft.get_peft_model(TINY_BACKBONES["DINOv2"].make(), SmgaConfig(num_frames=4))
    for call in (model, lambda images: FrameEncoder(model).encode(images[None])):
        with pytest.raises(DmgalError, match="another size"):
            call(images)
    with pytest.raises(DmgalError, match="another size"):
        FrameEncoder(TINY_BACKBONES["DINOv2"].make(), "map").encode(images[None])


@torch.no_grad()
def test_positions_are_not_jittered_in_training_mode():
    """Check that encoding a video twice gives equal features, as two-pass training requires."""
    model = tiny_backbones.of_transformers("DINOv3ViT", num_register_tokens=0, pos_embed_rescale=2.0).train()
    videos = torch.randn(1, 2, 3, SIZE, SIZE)
    encoder = FrameEncoder(model)
    assert torch.equal(encoder.encode(videos)["features"], encoder.encode(videos)["features"])
    assert model.rope_embeddings.training


def test_siglip_without_head_supports_patch_pooling_only():
    model = tiny_backbones.of_transformers("SiglipVision", vision_use_head=False)
    videos = torch.randn(1, 2, 3, SIZE, SIZE)
    assert FrameEncoder(model, "patch_mean").encode(videos)["features"].shape == (1, 2, WIDTH)
    with pytest.raises(DmgalError, match="patch_mean"):
        FrameEncoder(model).encode(videos)


def test_patches_of_several_grids_are_refused_beside_adapters():
    videos = MORE["SigLIP 2"].videos(2)
    model = peft.get_peft_model(MORE["SigLIP 2"].make(), SmgaConfig(num_frames=FRAMES))
    patches = torch.zeros(2 * FRAMES, 16, 192)
    inputs = {"pixel_values": patches, "num_frames": FRAMES}
    full, padded = torch.ones(2 * FRAMES, 16), torch.ones(2 * FRAMES, 16)
    padded[0, 15] = 0
    for mask, first in ((full, [2, 8]), (padded, [4, 4])):
        shapes = torch.tensor([first, *[[4, 4]] * (2 * FRAMES - 1)])
        with pytest.raises(DmgalError, match="takes images of one size") as caught:
            model(pixel_attention_mask=mask, spatial_shapes=shapes, **inputs)
        assert "images of 32 x 32 pixels" in str(caught.value)
    model = peft.get_peft_model(MORE["timm NaFlex"].make(), SmgaConfig(num_frames=FRAMES))
    with pytest.raises(DmgalError, match="takes images of one size"):
        model({"patches": patches, "patch_coord": torch.zeros(8, 16, 2), "patch_valid": torch.ones(8, 16)})
    with pytest.raises(DmgalError, match="multiples of 8"):
        FrameEncoder(MORE["SigLIP 2"].make()).encode(videos[..., :30])
