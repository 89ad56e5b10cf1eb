"""Motion adapters beyond the common contract (test_contract.py): layouts, errors, casts."""

from __future__ import annotations

import copy

import peft
import pytest
import torch

from dmgal.adapters import AIMConfig, BitFitConfig, D2STConfig, DmgalConfig, SmgaConfig, STAdapterConfig
from dmgal.errors import DmgalError

FRAMES = 4
LAYOUT = {"num_support": 3}
CONFIGS = {
    "both": DmgalConfig(num_frames=FRAMES),
    "smga only": SmgaConfig(num_frames=FRAMES),
}


def injected(backbone, config):
    return peft.get_peft_model(backbone.make(), copy.deepcopy(config)).eval()


def both():
    return CONFIGS["both"]


def test_cmga_requires_num_support_in_every_call(open_clip_visual, videos):
    model = injected(open_clip_visual, both())
    with pytest.raises(DmgalError, match="num_support"):
        open_clip_visual.features(model, videos)
    open_clip_visual.features(model, videos, num_support=3)
    with pytest.raises(DmgalError, match="num_support"):  # the last call's value is not remembered
        open_clip_visual.features(model, videos)


def test_failed_call_does_not_affect_the_next_layout(open_clip_visual, videos):
    model = injected(open_clip_visual, both())
    with pytest.raises(RuntimeError):
        open_clip_visual.features(model, videos[:, :, :, :30], **LAYOUT)
    with pytest.raises(DmgalError, match="num_support"):
        open_clip_visual.features(model, videos)


@pytest.mark.parametrize("frames", [3, 5])
def test_temporal_code_refuses_other_numbers_of_frames(open_clip_visual, frames):
    model = injected(open_clip_visual, both())
    with pytest.raises(DmgalError, match=f"received: {frames} frames"):
        open_clip_visual.features(model, torch.randn(2, frames, 3, 32, 32), num_support=1)


def test_without_temporal_code_any_number_of_frames_works(open_clip_visual):
    model = injected(open_clip_visual, DmgalConfig(temporal=False))
    for frames in (1, 3, 8):
        assert len(open_clip_visual.features(model, torch.randn(2, frames, 3, 32, 32), num_support=1)) == 2 * frames


def test_saved_adapter_is_refused_by_another_backbone(tmp_path, open_clip_visual):
    injected(open_clip_visual, both()).save_pretrained(tmp_path)
    wider = peft.PeftConfig.from_pretrained(tmp_path)
    wider.width = 64
    with pytest.raises(DmgalError, match=r"received: width 32.*\n.*expected: width 64"):
        peft.get_peft_model(open_clip_visual.make(), wider)
    other = open_clip_visual.make()
    torch.nn.init.normal_(other.conv1.weight)
    with pytest.raises(DmgalError, match="same shape but other weights"):
        peft.PeftModel.from_pretrained(other, tmp_path)
    peft.PeftModel.from_pretrained(open_clip_visual.make().to(torch.bfloat16), tmp_path)


def test_duplicate_adapter_name_is_refused(open_clip_visual):
    model = injected(open_clip_visual, both())
    with pytest.warns(UserWarning), pytest.raises(DmgalError, match="adapter_name='default'"):
        peft.get_peft_model(model.get_base_model(), copy.deepcopy(both()))


@torch.no_grad()
def test_each_adapter_keeps_its_own_number_of_frames(open_clip_visual, videos):
    model = injected(open_clip_visual, SmgaConfig(num_frames=FRAMES))
    model.add_adapter("long", SmgaConfig(num_frames=2 * FRAMES))
    open_clip_visual.features(model, videos.flatten(0, 1))  # flat: the active adapter's own number holds


def test_cmga_beside_another_active_adapter_is_refused(open_clip_visual, videos):
    model = injected(open_clip_visual, both())
    model.add_adapter("other", copy.deepcopy(both()))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(DmgalError, match="share its block"):
        open_clip_visual.features(model, videos, **LAYOUT)


def test_merge_error_recommends_unload(open_clip_visual):
    with pytest.raises(DmgalError, match=r"unload\(\)"):
        injected(open_clip_visual, both()).merge_and_unload()


def test_casting_the_model_casts_its_adapters(open_clip_visual, videos, perturb):
    model = injected(open_clip_visual, both())
    perturb(model)
    single = open_clip_visual.features(model, videos, **LAYOUT)
    double = open_clip_visual.features(model.double(), videos.double(), **LAYOUT)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=0, atol=1e-5)


@torch.no_grad()
def test_unloading_one_of_two_adapters_keeps_the_other(open_clip_visual, videos, perturb):
    inner = peft.get_peft_model(open_clip_visual.make(), SmgaConfig(num_frames=FRAMES), adapter_name="inner").eval()
    perturb(inner)
    expected = open_clip_visual.features(inner, videos)
    with pytest.warns(UserWarning):  # peft's: a second adapter
        outer = peft.get_peft_model(inner, copy.deepcopy(both()), adapter_name="outer").eval()
    perturb(outer)
    below = outer.unload()
    below.set_adapter("inner")
    assert not any(".outer." in name for name, _ in below.named_parameters())
    assert open_clip_visual.features(below, videos).shape == expected.shape


@pytest.mark.parametrize("place", ["resblocks.1", "transformer", "resblocks"])
@pytest.mark.parametrize("config", [DmgalConfig, SmgaConfig, D2STConfig, AIMConfig, STAdapterConfig, BitFitConfig])
def test_modules_to_save_with_an_adapter_are_refused(config, place, open_clip_visual):
    backbone = open_clip_visual.make()
    before = list(backbone.state_dict())
    with pytest.raises(DmgalError, match="modules_to_save cannot name a block with an adapter"):
        peft.get_peft_model(backbone, config(modules_to_save=[place]))
    assert list(backbone.state_dict()) == before


@pytest.mark.parametrize("part", ["norm", "proj", "fc1", "head"])
@pytest.mark.parametrize("config", [DmgalConfig(scales="multi"), D2STConfig(), AIMConfig(), STAdapterConfig()])
def test_modules_to_save_match_no_part_of_an_adapter(config, part, backbones):
    """PEFT finds ``modules_to_save`` by the ends of names, so no part of an adapter may end like a common one."""
    config = copy.deepcopy(config)
    config.modules_to_save = [part]
    model = peft.get_peft_model(backbones["timm ViT"].make(), config)
    wrapped = [name for name, _ in model.named_modules() if name.endswith("modules_to_save")]
    adapters = peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING[config.kind]
    assert wrapped and not any(adapters in name for name in wrapped)


def test_status_names_the_method(open_clip_visual):
    model = injected(open_clip_visual, both())
    model.add_adapter("second", SmgaConfig(num_frames=FRAMES))
    assert model.get_model_status().peft_types == {"default": "DMGAL", "second": "DMGAL"}


def test_injection_with_a_state_dict_takes_weights_of_the_same_adapter(open_clip_visual):
    weights = peft.get_peft_model_state_dict(injected(open_clip_visual, both()))
    model = peft.inject_adapter_in_model(both(), open_clip_visual.make(), state_dict=weights)
    assert not peft.set_peft_model_state_dict(model, weights).unexpected_keys
    loaded = peft.get_peft_model_state_dict(model)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


def test_injection_with_the_state_dict_of_another_adapter_is_refused(open_clip_visual):
    weights = peft.get_peft_model_state_dict(injected(open_clip_visual, both()))
    other = DmgalConfig(num_frames=FRAMES, smga_blocks=[0], cmga_blocks=[])
    with pytest.raises(DmgalError, match="do not fit the adapter"):
        peft.inject_adapter_in_model(other, open_clip_visual.make(), state_dict=weights)
