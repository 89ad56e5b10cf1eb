"""Backbones of videos: contract of the encoder and of adapters, with steps in time instead of frames."""

from __future__ import annotations

import copy
import dataclasses

import peft
import pytest
import torch
import transformers
from adapter_cases import ADAPTER_CASES
from einops import rearrange
from tiny_backbones import FRAMES, SIZE, TinyBackbone, tiny

from dmgal.adapters import AIMConfig, DmgalConfig
from dmgal.backbones import FrameEncoder, FrameMemory, find_spec
from dmgal.backbones.spec import base_model
from dmgal.errors import DmgalError
from dmgal.testing import ADAPTER_CHECKS, BACKBONE_CHECKS, AdapterCase, BackboneCase

_SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
_TUBES = {"patch_size": 8, "tubelet_size": 2}
STEPS = {"VideoMAE": 2, "V-JEPA 2": 2, "TimeSformer": 4, "ViViT": 2}


def _vjepa():
    sizes = {"mlp_ratio": 2, "crop_size": SIZE, "frames_per_clip": FRAMES, "pred_hidden_size": 16}
    predictor = {"pred_num_attention_heads": 2, "pred_num_hidden_layers": 1, "pred_num_mask_tokens": 1}
    config = transformers.VJEPA2Config(**_SIZES, **_TUBES, **sizes, **predictor)
    return transformers.VJEPA2Model(config)


def _make(name, **options):
    config = getattr(transformers, f"{name}Config")(**_SIZES, image_size=SIZE, num_frames=FRAMES, **options)
    return getattr(transformers, f"{name}Model")(config)


def _tokens(model, x, **layout):
    """Return the library's own tokens of clips, which are given as such or as their frames."""
    clips = x if x.ndim == 5 else rearrange(x, "(v t) c h w -> v t c h w", t=FRAMES)
    if isinstance(base_model(model), transformers.VJEPA2Model):
        return model(pixel_values_videos=clips, skip_predictor=True, **layout).last_hidden_state
    return model(pixel_values=clips, **layout).last_hidden_state


def _time_first(model, x, **layout):
    tokens = _tokens(model, x, **layout)
    return rearrange(tokens, "v (t n) c -> (v t) n c", n=16).mean(1)


def _class_token_and_time_first(model, x, **layout):
    tokens = _tokens(model, x, **layout)[:, 1:]
    return rearrange(tokens, "v (t n) c -> (v t) n c", n=16).mean(1)


def _class_token_and_place_first(model, x, **layout):
    tokens = _tokens(model, x, **layout)[:, 1:]
    return rearrange(tokens, "v (n t) c -> (v t) n c", n=16).mean(1)


BACKBONES = {
    "VideoMAE": tiny(lambda: _make("VideoMAE", **_TUBES, use_mean_pooling=False), _time_first),
    "V-JEPA 2": tiny(_vjepa, _time_first),
    "TimeSformer": tiny(lambda: _make("Timesformer", patch_size=8), _class_token_and_place_first),
    "ViViT": tiny(lambda: _make("Vivit", tubelet_size=(2, 8, 8)), _class_token_and_time_first),
}


def adapter_case(name: str, adapter: str) -> AdapterCase:
    backbone: TinyBackbone = BACKBONES[name]
    config = dataclasses.replace(ADAPTER_CASES[adapter], num_frames=STEPS[name])
    return AdapterCase(backbone.make, config, backbone.videos(), features=backbone.features)


@pytest.mark.parametrize("check", BACKBONE_CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", BACKBONES)
def test_contract(name, check):
    backbone = BACKBONES[name]
    check(BackboneCase(backbone.make, backbone.videos(2), backbone.features))


QUICK = [("VideoMAE", "DMGAL"), ("TimeSformer", "D2ST")]
MORE = [(name, adapter) for name in BACKBONES for adapter in ("DMGAL", "ST-Adapter", "D2ST", "BitFit")]
every_check = pytest.mark.parametrize("check", ADAPTER_CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))


@every_check
@pytest.mark.parametrize("pair", QUICK, ids=" + ".join)
def test_adapters(pair, check):
    check(adapter_case(*pair))


@pytest.mark.slow
@every_check
@pytest.mark.parametrize("pair", [pair for pair in MORE if pair not in QUICK], ids=" + ".join)
def test_more_adapters(pair, check):
    check(adapter_case(*pair))


@torch.no_grad()
@pytest.mark.parametrize("name", BACKBONES)
def test_a_copy_of_a_described_model_is_encoded(name):
    model, videos = BACKBONES[name].make(), BACKBONES[name].videos(2)
    model.dmgal_spec = find_spec(model)
    expected = FrameEncoder(model).encode(videos)["features"]
    assert torch.equal(FrameEncoder(copy.deepcopy(model)).encode(videos)["features"], expected)


@torch.no_grad()
@pytest.mark.parametrize("name", BACKBONES)
def test_class_token_and_patches_keep_their_places(name):
    model, videos = BACKBONES[name].make(), BACKBONES[name].videos(2)
    shape = find_spec(model).entry
    native = torch.randn(2, shape.num_prefix_tokens + STEPS[name] * 16, 32)
    steps = shape.tokens(native)
    assert steps.shape == (2 * STEPS[name], shape.num_prefix_tokens + 16, 32)
    assert torch.equal(shape.native(steps), native)
    own, maps = (FrameEncoder(model, pooling).encode(videos)["features"] for pooling in (None, "map"))
    torch.testing.assert_close(maps.mean((-2, -1)), own)
    tokens = _tokens(model, videos)[:, shape.num_prefix_tokens :]
    order = "v (t n) c -> v t n c" if shape.time_first else "v (n t) c -> v t n c"
    assert torch.equal(rearrange(maps, "v t c h w -> v t (h w) c"), rearrange(tokens, order, n=16))


@pytest.mark.parametrize("name", BACKBONES)
def test_clips_of_another_length_are_refused(name):
    model = peft.get_peft_model(BACKBONES[name].make(), DmgalConfig(num_frames=STEPS[name], cmga_blocks=[]))
    videos = BACKBONES[name].videos(1, frames=6)
    for call in (lambda: FrameEncoder(model).encode(videos), lambda: _tokens(model, videos)):
        with pytest.raises(DmgalError, match="takes clips of another length") as caught:
            call()
        assert "clips of 6 frames" in str(caught.value) and "--data.num-frames 4" in str(caught.value)


def test_what_needs_single_frames_is_refused():
    model = BACKBONES["VideoMAE"].make()
    with pytest.raises(DmgalError, match="AIMConfig is not supported"):
        peft.get_peft_model(model, AIMConfig(num_frames=2))
    with pytest.raises(DmgalError, match="frames of a video are not encoded alone"):
        FrameMemory(FrameEncoder(model), 1e9)


def test_vjepa_takes_another_number_of_frames():
    model = _vjepa().eval()
    model.config.frames_per_clip = 8
    with torch.no_grad():
        features = FrameEncoder(model).encode(BACKBONES["V-JEPA 2"].videos(2, frames=8))["features"]
        expected = _time_first(model, BACKBONES["V-JEPA 2"].videos(2, frames=8))
    assert features.shape[:2] == (2, 4) and torch.equal(features.flatten(0, 1), expected)


def test_clips_of_another_image_size_are_refused():
    with pytest.raises(DmgalError, match=r"what to do: Resize the images\.$"):
        FrameEncoder(BACKBONES["VideoMAE"].make()).encode(torch.zeros(1, FRAMES, 3, 2 * SIZE, 2 * SIZE))
