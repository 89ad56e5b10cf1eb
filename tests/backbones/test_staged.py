"""Hierarchical and convolutional backbones: contract of the encoder and of every adapter, and how they are found."""

from __future__ import annotations

import itertools

import open_clip
import peft
import pytest
import timm
import torch
import transformers
from adapter_cases import ADAPTER_CASES
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from tiny_backbones import TinyBackbone, direct, pooled, tiny
from torch import nn

from dmgal.adapters import DmgalConfig, SmgaConfig
from dmgal.backbones import FrameEncoder, describe_backbone, find_spec
from dmgal.errors import DmgalError
from dmgal.testing import ADAPTER_CHECKS, BACKBONE_CHECKS, AdapterCase, BackboneCase

SIZE = 64
_FOUR = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
_SWIN = {"image_size": SIZE, "embed_dim": 16, "depths": [1, 1, 2], "num_heads": [1, 2, 2], "window_size": 4}


def of_size(make, size=(SIZE, SIZE)):
    """Return a model that is described for images of another size than its library's default."""

    def described():
        model = make()
        describe_backbone(model, image_size=size)
        return model

    return described


def _timm(name, **options):
    return of_size(lambda: timm.create_model(name, num_classes=0, **options))


def _efficientnet():
    blocks = decode_arch_def([["ds_r1_k3_s1_e1_c8"], ["ir_r1_k3_s2_e2_c16"], ["ir_r2_k3_s2_e2_c24"]])
    return EfficientNet(blocks, num_classes=0, num_features=32, stem_size=8)


def _convnext_of_open_clip():
    vision = {"timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "linear", "image_size": SIZE}
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    return open_clip.CLIP(embed_dim=16, vision_cfg={**vision, "timm_model_pretrained": False}, text_cfg=text).visual


def _mvit():
    config = timm.models.mvitv2.MultiScaleVitCfg(depths=(1, 1, 2, 1), embed_dim=16, num_heads=1)
    return timm.models.mvitv2.MultiScaleVit(config, img_size=SIZE, num_classes=0)


def _hiera():
    sizes = {"img_size": (SIZE, SIZE), "embed_dim": 16, "num_heads": 1, "stages": (1, 1, 2, 1)}
    return timm.models.hiera.Hiera(num_classes=0, **sizes)


def _hf(name, **options):
    return getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**options))


def _last_map(model, x, **layout):
    return model(pixel_values=x, **layout).last_hidden_state.mean((1, 2))


def _pooled_map(model, x, **layout):
    return pooled(model, x, **layout).flatten(1)


def _sam2():
    stages = {"blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64]}
    heads = {"num_attention_heads": 1, "num_attention_heads_per_stage": [1, 2, 2, 2], "hidden_size": 8}
    windows = {"window_size_per_stage": [4, 2, 2, 2], "global_attention_blocks": [3]}
    background = {"window_positional_embedding_background_size": [4, 4]}
    return _hf("Sam2HieraDet", image_size=[SIZE, SIZE], **stages, **heads, **windows, **background)


def _hiera_of_transformers():
    return _hf("Hiera", image_size=[SIZE, SIZE], embed_dim=16, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 2])


class Pyramid(nn.Module):
    """A staged model of a user's own, with a layer between its stages."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.first = nn.Sequential(Residual(8), Residual(8))
        self.shrink = nn.Conv2d(8, 16, 2, 2)
        self.second = nn.Sequential(Residual(16), Residual(16))

    def forward(self, images):
        return self.second(self.shrink(self.first(self.embed(images)))).mean((2, 3))


class Plain(nn.Module):
    """Blocks without a class of their own, and pooling in the last container."""

    def __init__(self):
        super().__init__()
        blocks = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(2)]
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 4, 4), *blocks, nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1))
        )

    def forward(self, images):
        return self.layers(images).flatten(1)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mix = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, maps):
        return maps + self.mix(maps).relu()


BACKBONES = {
    "timm ResNet": tiny(_timm("resnet10t", layers=(1, 2, 1, 1), channels=(8, 8, 16, 32)), direct, (SIZE, SIZE)),
    "timm Swin": tiny(
        _timm("swin_tiny_patch4_window7_224", img_size=SIZE, embed_dim=16, depths=(1, 1, 2), num_heads=(1, 2, 2)),
        direct,
        (SIZE, SIZE),
    ),
    "timm ConvNeXt": tiny(_timm("convnext_atto", dims=(8, 16, 24, 32), depths=(1, 1, 2, 1)), direct, (SIZE, SIZE)),
    "timm MViTv2": tiny(of_size(_mvit), direct, (SIZE, SIZE)),
    "timm Hiera": tiny(of_size(_hiera), direct, (SIZE, SIZE)),
    "timm MobileNetV3": tiny(_timm("mobilenetv3_small_050"), direct, (SIZE, SIZE)),
    "timm Swin v2": tiny(
        _timm(
            "swinv2_tiny_window8_256", img_size=SIZE, window_size=4, embed_dim=16, depths=(1, 1, 2), num_heads=(1, 2, 2)
        ),
        direct,
        (SIZE, SIZE),
    ),
    "timm EfficientNet": tiny(of_size(_efficientnet), direct, (SIZE, SIZE)),
    "timm MobileViT": tiny(_timm("mobilevit_xxs"), direct, (SIZE, SIZE)),
    "transformers ResNet": tiny(of_size(lambda: _hf("ResNet", embedding_size=8, **_FOUR)), _pooled_map, (SIZE, SIZE)),
    "transformers ConvNeXt": tiny(lambda: _hf("ConvNext", image_size=SIZE, **_FOUR), pooled, (SIZE, SIZE)),
    "transformers Swin": tiny(lambda: _hf("Swin", **_SWIN), pooled, (SIZE, SIZE)),
    "transformers Swin v2": tiny(lambda: _hf("Swinv2", **_SWIN), pooled, (SIZE, SIZE)),
    "transformers SAM 2": tiny(_sam2, _last_map, (SIZE, SIZE)),
    "transformers Hiera": tiny(_hiera_of_transformers, pooled, (SIZE, SIZE)),
    "open_clip ResNet": tiny(
        lambda: open_clip.model.ModifiedResNet((1, 2, 1, 1), 16, 2, image_size=SIZE, width=8), direct, (SIZE, SIZE)
    ),
    "open_clip ConvNeXt": tiny(_convnext_of_open_clip, direct, (SIZE, SIZE)),
    "hand-written": tiny(of_size(Pyramid), direct, (SIZE, SIZE)),
    "hand-written non-square": tiny(of_size(Pyramid, (SIZE, 32)), direct, (SIZE, 32)),
}
NUM_BLOCKS = {
    "timm MobileNetV3": 12,
    "timm EfficientNet": 4,
    "timm MobileViT": 10,
    "transformers ConvNeXt": 4,
    "open_clip ConvNeXt": 12,
}
FAST = ("transformers ResNet", "timm Swin", "timm ConvNeXt", "hand-written non-square")
SLOW = [name for name in BACKBONES if name not in FAST]
CASES = [name for name in ADAPTER_CASES if name not in ("AIM", "ST-Adapter twice", "side")]  # these need equal blocks


def backbone_case(backbone: TinyBackbone) -> BackboneCase:
    return BackboneCase(backbone.make, backbone.videos(2, frames=2), backbone.features)


every_backbone_check = pytest.mark.parametrize(
    "check", BACKBONE_CHECKS, ids=lambda check: check.__name__.removeprefix("check_")
)


@every_backbone_check
@pytest.mark.parametrize("name", FAST)
def test_contract(name, check):
    check(backbone_case(BACKBONES[name]))


@pytest.mark.slow
@every_backbone_check
@pytest.mark.parametrize("name", SLOW)
def test_contract_of_more_backbones(name, check):
    check(backbone_case(BACKBONES[name]))


QUICK = [("timm Swin", "DMGAL")]
FULL = [pair for pair in itertools.product(BACKBONES, CASES) if pair not in QUICK]


def check_adapter(pair, check):
    tiny_backbone = BACKBONES[pair[0]]
    videos = tiny_backbone.videos()
    check(AdapterCase(tiny_backbone.make, ADAPTER_CASES[pair[1]], videos, features=tiny_backbone.features))


every_check = pytest.mark.parametrize("check", ADAPTER_CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))


@every_check
@pytest.mark.parametrize("pair", dict.fromkeys(QUICK), ids=" + ".join)
def test_adapters(pair, check):
    check_adapter(pair, check)


@pytest.mark.slow
@every_check
@pytest.mark.parametrize("pair", FULL, ids=" + ".join)
def test_adapters_of_the_full_product(pair, check):
    check_adapter(pair, check)


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_blocks_are_found(name):
    spec = find_spec(BACKBONES[name].make())
    has_four = "Swin" in name or "hand-written" in name
    assert spec.num_blocks == len(spec.sides) == NUM_BLOCKS.get(name, 4 if has_four else 5)
    grids = [side.after.grid for side in spec.sides]
    assert grids == sorted(grids, reverse=True) and len(set(grids)) > 1
    check_features = BACKBONE_CHECKS[0]
    check_features(backbone_case(BACKBONES[name]))


def test_blocks_that_start_as_the_identity_are_found():
    """Check timm's Swin v2, whose norms start at zero: a stage then seems to be a module between its own blocks."""
    sizes = {"img_size": SIZE, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)}
    model = timm.create_model("swinv2_tiny_window8_256", num_classes=0, **sizes).eval()
    describe_backbone(model, image_size=(SIZE, SIZE))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        videos = torch.randn(1, 2, 3, SIZE, SIZE)
        assert torch.equal(FrameEncoder(model).encode(videos)["features"][0], model(videos[0]))


def test_images_of_another_size_are_refused():
    encoder = FrameEncoder(BACKBONES["timm ResNet"].make())
    with pytest.raises(DmgalError, match=r"describe_backbone\(model, image_size=\(96, 96\)\)"):
        encoder.encode(torch.zeros(1, 2, 3, 96, 96))


@torch.no_grad()
def test_blocks_may_be_sequential_and_have_weights():
    backbone = Plain().eval().requires_grad_(False)
    spec = describe_backbone(backbone, image_size=(SIZE, SIZE))
    assert spec.block_names() == ["layers.1", "layers.2"]
    images = torch.randn(4, 3, SIZE, SIZE)
    expected = backbone(images)
    model = peft.get_peft_model(backbone, DmgalConfig(num_frames=2))
    support, query = FrameEncoder(model)(images[:2].unsqueeze(0), images[2:].unsqueeze(0))
    torch.testing.assert_close(torch.cat([support, query]).flatten(0, 1), expected)
    assert torch.equal(model(images, num_frames=2, num_support=1), expected)


def test_no_smga_on_large_grids_by_default():
    sizes = {**_SWIN, "image_size": 256, "depths": [1, 1], "num_heads": [1, 2]}
    model = peft.get_peft_model(_hf("Swin", **sizes), SmgaConfig())
    assert find_spec(model).sides[0].after.grid == (64, 64)
    assert model.peft_config["default"].smga_blocks == [1]


def test_recomputed_blocks_update_statistics_once():
    counts, videos = [], torch.randn(1, 2, 3, SIZE, SIZE)
    for checkpoint in (False, True):
        backbone = BACKBONES["transformers ResNet"].make().train().requires_grad_(True)
        FrameEncoder(backbone, checkpoint_blocks=checkpoint).encode(videos)["features"].sum().backward()
        counts.append({name: value for name, value in backbone.named_buffers() if "running" in name or "num" in name})
    assert all(torch.equal(value, counts[1][name]) for name, value in counts[0].items())


class Dense(nn.Module):
    """Blocks whose results are added outside them, so that they are no chain."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.ModuleList(Residual(8) for _ in range(3))

    def forward(self, images):
        maps = self.embed(images)
        for block in self.blocks:
            maps = maps + block(maps)
        return maps.mean((2, 3))


def test_blocks_that_are_no_chain_are_refused():
    with pytest.raises(DmgalError, match="were not found"):
        describe_backbone(Dense(), image_size=(SIZE, SIZE))


@torch.no_grad()
@pytest.mark.parametrize("pixels", [44, 48])
def test_odd_grids_and_windows_that_do_not_divide_them(pixels):
    """A Swin pads 11 x 11 and 12 x 12 patches to windows of 7, and merges 11 x 11 to 6 x 6."""
    sizes = {"img_size": pixels, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2), "num_classes": 0}
    backbone = timm.create_model("swin_tiny_patch4_window7_224", **sizes).eval().requires_grad_(False)
    spec = describe_backbone(backbone, image_size=(pixels, pixels))
    assert [side.after.grid for side in spec.sides] == [(pixels // 4,) * 2, (6, 6)]
    images = torch.randn(4, 3, pixels, pixels)
    expected = backbone(images)
    model = peft.get_peft_model(backbone, DmgalConfig(num_frames=2)).eval()
    support, query = FrameEncoder(model)(*images.view(2, 1, 2, 3, pixels, pixels))
    torch.testing.assert_close(torch.cat([support, query]).flatten(0, 1), expected)
    assert torch.equal(model(images, num_frames=2, num_support=1), expected)


def test_a_size_that_the_library_refuses_leaves_the_model_unchanged():
    """The masks of transformers' Swin do not fit a grid that windows do not divide."""
    model = _hf("Swin", **{**_SWIN, "image_size": 40})
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(DmgalError, match=r"could not be run on images \(2, 3, 40, 40\)"):
        peft.get_peft_model(model, DmgalConfig(num_frames=2))
    assert [name for name, _ in model.named_modules()] == names
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not hasattr(model, "dmgal_spec") and not hasattr(model, "dmgal_layout")
