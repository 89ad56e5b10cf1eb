"""The adapters keep every PEFT habit, on every backbone they go into."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from safetensors.torch import load_file

from dmgal.adapters import CmgaConfig, DmgalConfig, SmgaConfig
from dmgal.backbones import FrameEncoder
from dmgal.errors import DmgalError

FRAMES = 4
LAYOUT = {"num_support": 3}
CONFIGS = {
    "both": DmgalConfig(num_frames=FRAMES),
    "smga only": SmgaConfig(num_frames=FRAMES),
    "cmga only": CmgaConfig(num_frames=FRAMES),
    "cmga before the last block": DmgalConfig(num_frames=FRAMES, cmga_blocks=[1], smga_blocks=[0, 2]),
    "two cmga": DmgalConfig(num_frames=FRAMES, cmga_blocks=[0, 2], smga_blocks=[1]),
    "multi-scale": DmgalConfig(num_frames=FRAMES, scales="multi"),
    "no switches": DmgalConfig(num_frames=FRAMES, attention=False, signed=False, temporal=False),
}


BACKBONES = (
    "open_clip visual",
    "open_clip whole",
    "transformers vision",
    "transformers vision with projection",
    "transformers whole",
)
# every configuration on one backbone, every backbone with one configuration
PAIRS = [("open_clip visual", name) for name in CONFIGS] + [(name, "both") for name in BACKBONES]


@pytest.fixture(params=dict.fromkeys(PAIRS), ids=" + ".join)
def pair(request):
    return request.param


@pytest.fixture
def backbone(pair, backbones):
    return backbones[pair[0]]


@pytest.fixture
def config(pair):
    return copy.deepcopy(CONFIGS[pair[1]])


def injected(backbone, config):
    return peft.get_peft_model(backbone.make(), copy.deepcopy(config)).eval()


def both():
    return CONFIGS["both"]


@torch.no_grad()  # with gradients torch picks another attention kernel for a frozen model than for one that is trained
def test_injected_model_equals_its_backbone_bit_for_bit(backbone, config, videos):
    expected = backbone.features(backbone.make(), videos.flatten(0, 1))
    model = injected(backbone, config)
    assert torch.equal(backbone.features(model, videos, **LAYOUT), expected)
    with torch.autocast("cpu", torch.bfloat16):
        expected = backbone.features(backbone.make(), videos.flatten(0, 1))
        assert torch.equal(backbone.features(model, videos, **LAYOUT), expected)


@torch.no_grad()
def test_straight_through_equals_relate_of_encode(backbone, config, videos, perturb):
    model = injected(backbone, config)
    start = backbone.features(model, videos, **LAYOUT)
    perturb(model)
    straight = backbone.features(model, videos, **LAYOUT)
    assert (straight - start).abs().max() > 1e-3, "the perturbed adapter does nothing"
    encoder = FrameEncoder(model)
    support, query = encoder.relate(encoder.encode(videos[:3]), encoder.encode(videos[3:]))
    if encoder.spec.library == "transformers" and straight.shape[-1] != support.shape[-1]:
        pytest.fail("the encoder projects otherwise than the model")
    torch.testing.assert_close(torch.cat([support, query]).flatten(0, 1), straight, rtol=0, atol=1e-5)


@torch.no_grad()
def test_disabled_adapter_is_the_backbone(backbone, config, videos, perturb):
    expected = backbone.features(backbone.make(), videos.flatten(0, 1))
    model = injected(backbone, config)
    perturb(model)
    assert not torch.equal(backbone.features(model, videos, **LAYOUT), expected)
    with model.disable_adapter():
        assert torch.equal(backbone.features(model, videos), expected)


@torch.no_grad()
def test_saved_adapter_holds_only_itself_and_loads_to_the_same_outputs(backbone, config, videos, perturb, tmp_path):
    model = injected(backbone, config)
    perturb(model)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(tensor.numel() for tensor in saved.values()) == sum(parameter.numel() for parameter in trained) > 0
    loaded = peft.PeftModel.from_pretrained(backbone.make(), tmp_path).eval()
    expected = backbone.features(model, videos, **LAYOUT)
    assert torch.equal(backbone.features(loaded, videos, **LAYOUT), expected)
    lazily = peft.PeftModel.from_pretrained(backbone.make(), tmp_path, low_cpu_mem_usage=True).eval()
    assert torch.equal(backbone.features(lazily, videos, **LAYOUT), expected)
    assert torch.equal(backbone.features(copy.deepcopy(model), videos, **LAYOUT), expected)


def test_gradients_reach_all_adapter_parameters_and_no_others(backbone, config, videos, perturb):
    model = injected(backbone, config)
    perturb(model)
    encoder = FrameEncoder(model, pooling="patch_mean")
    support, query = encoder(videos[:3], videos[3:])
    (support.square().sum() + query.square().sum()).backward()
    for name, parameter in model.named_parameters():
        if "dmgal_" not in name:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@torch.no_grad()
def test_unload_leaves_no_trace(backbone, config, videos, perturb):
    plain = backbone.make()
    model = injected(backbone, config)
    perturb(model)
    unloaded = model.unload()
    assert [name for name, _ in unloaded.named_modules()] == [name for name, _ in plain.named_modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unloaded.modules())
    images = videos.flatten(0, 1)
    assert torch.equal(backbone.features(unloaded, images), backbone.features(plain, images))


@torch.no_grad()
def test_two_adapters_switch_and_are_deleted(open_clip_visual, videos, perturb):
    model = injected(open_clip_visual, both())
    perturb(model)
    first = open_clip_visual.features(model, videos, **LAYOUT)
    model.add_adapter("other", copy.deepcopy(CONFIGS["smga only"]))
    model.set_adapter("other")
    assert not torch.equal(open_clip_visual.features(model, videos), first)
    model.set_adapter("default")
    assert torch.equal(open_clip_visual.features(model, videos, **LAYOUT), first)
    model.delete_adapter("other")
    assert not any(".other." in name for name, _ in model.named_parameters())
    assert torch.equal(open_clip_visual.features(model, videos, **LAYOUT), first)


def test_lora_stands_beside_motion(open_clip_visual, videos, perturb):
    with_lora = peft.get_peft_model(open_clip_visual.make(), peft.LoraConfig(target_modules=["c_fc"], r=2))
    with pytest.warns(UserWarning):  # peft's: two adapters in one model
        model = peft.get_peft_model(with_lora, copy.deepcopy(both()), adapter_name="motion").eval()
    perturb(model)
    names = [name for name, parameter in model.named_parameters() if "lora_" in name or "dmgal_" in name]
    assert any("lora_" in name for name in names) and any("dmgal_" in name for name in names)
    encoder = FrameEncoder(model)
    assert encoder(videos[:3], videos[3:])[0].shape == (3, FRAMES, 16)


def test_a_cmga_has_to_be_told_the_support(open_clip_visual, videos):
    model = injected(open_clip_visual, both())
    with pytest.raises(DmgalError, match="num_support"):
        open_clip_visual.features(model, videos)
    open_clip_visual.features(model, videos, num_support=3)
    with pytest.raises(DmgalError, match="num_support"):  # told once is not remembered
        open_clip_visual.features(model, videos)


def test_layout_of_a_failed_call_is_not_remembered(open_clip_visual, videos):
    model = injected(open_clip_visual, both())
    with pytest.raises(RuntimeError):
        open_clip_visual.features(model, videos[:, :, :, :30], **LAYOUT)
    with pytest.raises(DmgalError, match="num_support"):
        open_clip_visual.features(model, videos)


@pytest.mark.parametrize("frames", [3, 5])
def test_other_numbers_of_frames_are_refused_with_a_temporal_code(open_clip_visual, frames):
    model = injected(open_clip_visual, both())
    with pytest.raises(DmgalError, match=f"received: {frames} frames"):
        open_clip_visual.features(model, torch.randn(2, frames, 3, 32, 32), num_support=1)


def test_any_number_of_frames_without_a_temporal_code(open_clip_visual):
    model = injected(open_clip_visual, DmgalConfig(temporal=False))
    for frames in (1, 3, 8):
        assert len(open_clip_visual.features(model, torch.randn(2, frames, 3, 32, 32), num_support=1)) == 2 * frames


def test_an_adapter_is_refused_by_another_backbone(tmp_path, open_clip_visual):
    injected(open_clip_visual, both()).save_pretrained(tmp_path)
    wider = peft.PeftConfig.from_pretrained(tmp_path)
    wider.width = 64
    with pytest.raises(DmgalError, match=r"received: width 32.*\n.*expected: width 64"):
        peft.get_peft_model(open_clip_visual.make(), wider)
    other = open_clip_visual.make()
    torch.nn.init.normal_(other.conv1.weight)
    with pytest.raises(DmgalError, match="same shape and other weights"):
        peft.PeftModel.from_pretrained(other, tmp_path)
    peft.PeftModel.from_pretrained(open_clip_visual.make().to(torch.bfloat16), tmp_path)


def test_the_same_name_twice_is_refused(open_clip_visual):
    model = injected(open_clip_visual, both())
    with pytest.warns(UserWarning), pytest.raises(DmgalError, match="adapter_name='default'"):
        peft.get_peft_model(model.get_base_model(), copy.deepcopy(both()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smga_blocks": [3]}, r"from -3 to 2"),
        ({"cmga_blocks": 3}, "a list of whole numbers"),
        ({"smga_blocks": [1], "cmga_blocks": [1]}, "no block in both"),
        ({"smga_blocks": [], "cmga_blocks": []}, "at least one block"),
        ({"bottleneck": 0}, "at least 1"),
        ({"num_frames": 1}, "at least 2"),
        ({"scales": "triple"}, "'single' or 'multi'"),
        ({"target_modules": ["c_fc"]}, "smga_blocks"),
    ],
)
def test_wrong_options_are_refused_with_what_is_right(open_clip_visual, options, message):
    with pytest.raises(DmgalError, match=message):
        injected(open_clip_visual, DmgalConfig(**options))


@torch.no_grad()
def test_each_adapter_keeps_its_own_number_of_frames(open_clip_visual, videos):
    model = injected(open_clip_visual, SmgaConfig(num_frames=FRAMES))
    model.add_adapter("long", SmgaConfig(num_frames=2 * FRAMES))
    open_clip_visual.features(model, videos.flatten(0, 1))  # flat: the active adapter's own number holds


def test_one_config_serves_any_number_of_backbones(backbones):
    config = DmgalConfig(num_frames=FRAMES)
    for name in BACKBONES:
        model = peft.get_peft_model(backbones[name].make(), config)
        assert model.peft_config["default"].width == 32 and config.width is None


def test_two_active_adapters_behind_one_block_are_refused_with_a_cmga(open_clip_visual, videos):
    model = injected(open_clip_visual, both())
    model.add_adapter("other", copy.deepcopy(both()))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(DmgalError, match="share its block"):
        open_clip_visual.features(model, videos, **LAYOUT)


def test_merging_is_refused_and_says_unload(open_clip_visual):
    with pytest.raises(NotImplementedError, match=r"unload\(\)"):
        injected(open_clip_visual, both()).merge_and_unload()


def test_defaults_follow_width_and_depth(open_clip_visual):
    config = injected(open_clip_visual, DmgalConfig()).peft_config["default"]
    assert (config.smga_blocks, config.cmga_blocks) == ([0, 1], [2])
    assert (config.bottleneck, config.motion_width, config.grid) == (8, 8, [4, 4])


def test_model_moves_and_casts_as_a_whole(open_clip_visual, videos, perturb):
    model = injected(open_clip_visual, both())
    perturb(model)
    single = open_clip_visual.features(model, videos, **LAYOUT)
    double = open_clip_visual.features(model.double(), videos.double(), **LAYOUT)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=0, atol=1e-5)
