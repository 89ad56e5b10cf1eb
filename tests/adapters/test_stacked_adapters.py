"""Several kinds of adapters in one backbone: order, names, and LoRA below them."""

from __future__ import annotations

import copy
import itertools

import peft
import pytest
import torch
from tiny_backbones import TINY_BACKBONES
from torch import nn

from dmgal.adapters import AIMConfig, BitFitConfig, D2STConfig, DmgalConfig, STAdapterConfig
from dmgal.backbones import FrameEncoder
from dmgal.errors import DmgalError
from dmgal.testing import ignored_warnings

KINDS = {
    "DMGAL": DmgalConfig(num_frames=4),
    "ST-Adapter": STAdapterConfig(num_frames=4, places="attention+mlp"),
    "AIM": AIMConfig(num_frames=4),
    "D2ST": D2STConfig(num_frames=4),
    "BitFit": BitFitConfig(num_frames=4),
}
CLIP = TINY_BACKBONES["open_clip visual"]
VIDEOS = CLIP.videos()


def put_in(model: nn.Module, config: peft.PeftConfig, name: str) -> peft.PeftModel:
    with ignored_warnings():
        return peft.get_peft_model(model, copy.deepcopy(config), adapter_name=name).eval()


def perturbed(model: nn.Module) -> nn.Module:
    """Give each parameter weights that depend only on its name."""
    for name, parameter in sorted(model.named_parameters()):
        if any(mark in name for mark in (".a.", ".b.")):
            seed = sum(map(ord, name.split("resblocks.")[-1])) % 1000
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    return model


def stacked(first: str, second: str, names: tuple[str, str] = ("a", "b")) -> nn.Module:
    return perturbed(put_in(put_in(CLIP.make(), KINDS[first], names[0]), KINDS[second], names[1]))


@torch.no_grad()
@pytest.mark.parametrize("pair", list(itertools.permutations(KINDS, 2)), ids=" then ".join)
def test_forward_equals_relate_of_encode_in_any_order_of_injection(pair):
    first, second = pair
    model = stacked(first, second)
    straight = model(VIDEOS, num_support=3)
    encoder = FrameEncoder(model)
    related = encoder.relate(encoder.encode(VIDEOS[:3]), encoder.encode(VIDEOS[3:]))
    torch.testing.assert_close(torch.cat(related).flatten(0, 1), straight, rtol=0, atol=1e-5)
    if {first, second} == {"DMGAL", "D2ST"}:
        other = stacked(second, first, ("b", "a"))
        torch.testing.assert_close(other(VIDEOS, num_support=3), straight, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["DMGAL", "D2ST"])
def test_duplicate_name_is_refused_before_any_change(kind):
    model = put_in(CLIP.make(), KINDS["DMGAL"], "default")
    config = model.peft_config["default"]
    with pytest.raises(DmgalError, match="adapter_name='default'"):
        put_in(model, KINDS[kind], "default")
    assert model.peft_config["default"] is config


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_merging_an_inner_attention_lora_keeps_features(kind):
    below = put_in(CLIP.make(), peft.LoraConfig(target_modules=["attn", "c_fc"], r=2), "b")
    model = perturbed(put_in(below, KINDS[kind], "a"))
    expected = model(VIDEOS, num_support=3)
    below.merge_and_unload()
    torch.testing.assert_close(model(VIDEOS, num_support=3), expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("lora_first", [True, False])
def test_bitfit_trains_every_bias_beside_an_attention_lora(lora_first):
    lora = peft.LoraConfig(target_modules=["attn", "c_fc"], r=2, modules_to_save=["ln_1"])
    order = [(lora, "b"), (BitFitConfig(num_frames=4), "a")]
    model: nn.Module = CLIP.make()
    for config, name in order if lora_first else reversed(order):
        model = put_in(model, config, name)
    model.set_adapter("b" if not lora_first else "a")
    names = {name for name, _ in model.named_parameters() if "bitfit_adapter" in name and ".0." in name}
    assert {name.rpartition(".")[2] for name in names} == {
        "ln_1/bias", "attn/in_proj_bias", "attn/out_proj/bias", "ln_2/bias", "mlp/c_fc/bias", "mlp/c_proj/bias",
    }  # fmt: skip
    start = model(VIDEOS)
    for name, parameter in model.named_parameters():
        if "attn/out_proj/bias" in name and parameter.numel():
            parameter.data += torch.linspace(-1, 1, parameter.numel())  # a constant would be lost in the next norm
    assert (model(VIDEOS) - start).abs().max() > 1e-2


@torch.no_grad()
def test_aim_works_over_a_lora_on_torch_attention():
    tiny = TINY_BACKBONES["hand-written (N,B,C)"]
    for lora_first in (True, False):
        order = [(peft.LoraConfig(target_modules=["attention"], r=2), "b"), (AIMConfig(num_frames=4), "a")]
        model: nn.Module = tiny.make()
        for config, name in order if lora_first else reversed(order):
            model = put_in(model, config, name)
        assert perturbed(model)(tiny.videos()).isfinite().all()


@torch.no_grad()
def test_failed_call_does_not_affect_the_next():
    model = perturbed(put_in(CLIP.make(), KINDS["ST-Adapter"], "a"))
    expected = model(VIDEOS)
    mlp = model.get_base_model().transformer.resblocks[1].mlp

    def out_of_memory(*_: object) -> None:
        raise MemoryError

    handle = mlp.register_forward_pre_hook(out_of_memory)
    with pytest.raises(MemoryError):
        model(VIDEOS)
    handle.remove()
    assert torch.equal(model(VIDEOS), expected)


def test_nested_bitfit_call_is_refused():
    model = put_in(CLIP.make(), KINDS["BitFit"], "a")
    norm = model.get_base_model().transformer.resblocks[0].ln_1
    handle = norm.register_forward_pre_hook(lambda module, inputs: module.forward(*inputs) and None)
    handle.remove()
    before = norm.bias
    nested = norm.register_forward_hook(lambda module, inputs, output: module(*inputs), prepend=True)
    with pytest.raises(DmgalError, match="one thread"):
        model(VIDEOS)
    nested.remove()
    assert norm.bias is before


def test_invalid_numbers_of_frames_and_support_are_refused():
    model = put_in(CLIP.make(), DmgalConfig(num_frames=4, temporal=False), "a")
    for wrong in ({"num_frames": 0}, {"num_frames": True}, {"num_frames": 4.0}, {"num_support": -1}, {"num_frames": 2}):
        with pytest.raises(DmgalError, match="has an invalid num_"):
            model(VIDEOS, **{"num_support": 3, **wrong})
    with pytest.raises(DmgalError, match="5 frames, 4 frames a video"):
        model(VIDEOS.flatten(0, 1)[:5], num_frames=4, num_support=1)
