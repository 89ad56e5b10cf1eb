"""Calls of PEFT and transformers that users expect to work: each is exact, or one clear error."""

from __future__ import annotations

import copy
from functools import partial

import peft
import pytest
import torch
from adapter_cases import ADAPTER_CASES
from peft.utils.hotswap import hotswap_adapter
from tiny_backbones import TINY_BACKBONES
from torch import nn

from dmgal.adapters import DmgalConfig, SmgaConfig
from dmgal.backbones import FrameEncoder
from dmgal.errors import DmgalError
from dmgal.testing import ignored_warnings

CLIP = TINY_BACKBONES["open_clip visual"]
TOKENS_FIRST = TINY_BACKBONES["hand-written (N,B,C)"]
HF = TINY_BACKBONES["transformers CLIP"]
VIDEOS = CLIP.videos(6)
NAMES = ["x", "__base__", "y", "x", "y", "x"]
NUM_SUPPORT = 3
MIXED = ("DMGAL", "two Cmga", "Smga before", "ST-Adapter twice", "AIM", "D2ST")


def two_adapters(config, tiny=CLIP, names=("x", "y")) -> peft.PeftModel:
    """Return a model with two adapters of other weights each, of which the first is active."""
    with ignored_warnings():
        model = peft.get_peft_model(tiny.make(), copy.deepcopy(config), adapter_name=names[0])
        model.add_adapter(names[1], copy.deepcopy(config))
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if any(f".{adapter}." in name for adapter in names):
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", MIXED)
def test_mixed_batch_equals_a_call_for_each_adapter(name):
    model = two_adapters(ADAPTER_CASES[name])
    mixed = model(VIDEOS, num_support=NUM_SUPPORT, adapter_names=NAMES).unflatten(0, (6, 4))
    assert model.active_adapters == ["x"]
    for adapter in ("x", "y"):
        rows = [index for index, other in enumerate(NAMES) if other == adapter]
        model.set_adapter(adapter)
        alone = model(VIDEOS[rows], num_support=sum(row < NUM_SUPPORT for row in rows))
        torch.testing.assert_close(mixed[rows].flatten(0, 1), alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed[1], CLIP.make()(VIDEOS[1]), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["AIM", "D2ST"])
def test_mixed_batch_in_another_layout(name):
    model = two_adapters(ADAPTER_CASES[name], TOKENS_FIRST)
    mixed = model(VIDEOS, adapter_names=["__base__"] * 3 + ["y"] * 3)
    assert torch.equal(mixed[:12], TOKENS_FIRST.make()(VIDEOS.flatten(0, 1))[:12])
    model.set_adapter("y")
    torch.testing.assert_close(mixed[12:], model(VIDEOS[3:]), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("config", [SmgaConfig(num_frames=4), peft.LoraConfig(target_modules=["c_fc"], r=2)])
def test_encoder_mixes_adapters(config):
    encoder = FrameEncoder(two_adapters(config))
    mixed = encoder.encode(VIDEOS, adapter_names=NAMES)["features"]
    plain = encoder.encode(VIDEOS)["features"]
    rows = [index for index, name in enumerate(NAMES) if name == "x"]
    torch.testing.assert_close(mixed[rows], plain[rows], rtol=0, atol=1e-5)
    assert (mixed[2] - plain[2]).abs().max() > 1e-3


def test_recomputation_knows_the_mixture():
    gradients = []
    for checkpoint in (False, True):
        model = two_adapters(SmgaConfig(num_frames=4))
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.requires_grad)
        encoder = FrameEncoder(model, checkpoint_blocks=checkpoint)
        encoder.encode(VIDEOS, adapter_names=NAMES)["features"].square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_mixed_batch_leaves_a_lora_below_as_it_is():
    with ignored_warnings():
        lora = peft.get_peft_model(CLIP.make(), peft.LoraConfig(target_modules=["c_fc"], init_lora_weights=False))
        model = peft.get_peft_model(lora, SmgaConfig(num_frames=4), adapter_name="x").eval()
    expected = lora.eval()(VIDEOS.flatten(0, 1))
    assert torch.equal(model(VIDEOS, adapter_names=["__base__"] * 6), expected)
    with pytest.raises(DmgalError, match="no adapter of this name"):
        model(VIDEOS, adapter_names=["default"] * 6)


def test_mixtures_that_cannot_be_exact_are_refused():
    model = two_adapters(DmgalConfig(num_frames=4))
    call = partial(model, VIDEOS, num_support=NUM_SUPPORT)
    refused = {
        "no adapter of this name": partial(call, adapter_names=["x", "c", *NAMES[2:]]),
        "24 names for 6 videos": partial(call, adapter_names=["x"] * 24),
        "a list of names": partial(call, adapter_names="x"),
        "only aLoRA": partial(call, alora_offsets=[None] * 6),
        "relates the videos": partial(FrameEncoder(model).encode, VIDEOS, adapter_names=NAMES),
        "num_support=0 with 3 videos": partial(model, VIDEOS, num_support=1, adapter_names=["y"] * 3 + ["x"] * 3),
        "cannot mix adapters in a batch": partial(FrameEncoder(CLIP.make()).encode, VIDEOS, adapter_names=NAMES),
    }
    for message, refuse in refused.items():
        with pytest.raises(DmgalError, match=message):
            refuse()
    assert torch.equal(call(), call()), "a refused call leaves no mixture"
    with pytest.raises(DmgalError, match="training mode"):
        model.train()(VIDEOS, num_support=NUM_SUPPORT, adapter_names=NAMES)
    with pytest.raises(DmgalError, match="change all videos"):
        two_adapters(ADAPTER_CASES["BitFit"])(VIDEOS, adapter_names=NAMES)
    with_norm = SmgaConfig(num_frames=4, modules_to_save=["ln_post"])
    with pytest.raises(DmgalError, match="modules_to_save"):
        two_adapters(with_norm)(VIDEOS, adapter_names=NAMES)


@torch.no_grad()
def test_saved_adapter_is_refused_by_load_adapter_of_transformers(tmp_path):
    config = SmgaConfig(num_frames=4)
    peft.get_peft_model(HF.make(), config).save_pretrained(tmp_path)
    backbone = HF.make()
    before = list(backbone.state_dict())
    with pytest.raises(DmgalError, match=r"peft\.PeftModel\.from_pretrained"):
        backbone.load_adapter(str(tmp_path))
    assert list(backbone.state_dict()) == before and not hasattr(backbone, "dmgal_layout")
    backbone.add_adapter(config, "new")  # of transformers, with new weights
    videos = HF.videos(2)
    assert torch.equal(HF.features(backbone, videos), HF.features(HF.make(), videos.flatten(0, 1)))


def test_status_of_a_loaded_adapter_names_the_method(tmp_path):
    two_adapters(SmgaConfig(num_frames=4)).save_pretrained(tmp_path)
    model = peft.PeftModel.from_pretrained(CLIP.make(), tmp_path / "x", adapter_name="x")
    for loaded in (model, copy.deepcopy(model)):
        assert loaded.get_model_status().peft_types == {"x": "DMGAL"}
        assert {layer.module_type for layer in loaded.get_layer_status()} == {"MotionLayer"}


@torch.no_grad()
def test_calls_of_peft_without_a_meaning_are_refused_and_change_nothing(tmp_path):
    model = two_adapters(SmgaConfig(num_frames=4))
    expected = model(VIDEOS)
    model.save_pretrained(tmp_path)
    refused = {
        "weighted": partial(model.add_weighted_adapter, ["x", "y"], [0.5, 0.5], "c"),
        "cannot be merged": model.merge_adapter,
        "no adapter of this name": partial(model.base_model.set_adapter, ["x", "c"]),
        "only supports LORA": partial(hotswap_adapter, model, str(tmp_path / "y"), "x"),
        "not compatible with the `PeftMixedModel`": partial(peft.get_peft_model, CLIP.make(), SmgaConfig(), mixed=True),
        "already has an adapter": partial(peft.get_peft_model, model, SmgaConfig(), adapter_name="x"),
        "Adapter c not found": partial(model.set_adapter, "c"),
        "does not exist": partial(model.delete_adapter, "c"),
    }
    for message, call in refused.items():
        with ignored_warnings(), pytest.raises(ValueError, match=message):
            call()
    assert torch.equal(model(VIDEOS), expected) and list(model.peft_config) == ["x", "y"]


@torch.no_grad()
def test_two_active_adapters_act_one_after_the_other():
    model = two_adapters(SmgaConfig(num_frames=4, smga_blocks=[-1]))
    blocks = model.get_base_model().transformer.resblocks
    adapters = blocks[-1].motion.adapters
    outputs: list[torch.Tensor] = []
    handle = blocks[-1].register_forward_hook(lambda block, inputs, output: outputs.append(output))
    with model.disable_adapter():
        model(VIDEOS.flatten(0, 1))
    model.base_model.set_adapter(["x", "y"])
    model(VIDEOS)
    handle.remove()
    tokens = adapters["y"](adapters["x"](outputs[0].unflatten(0, (6, 4))))
    torch.testing.assert_close(outputs[1], tokens.flatten(0, 1))


@torch.no_grad()
def test_nested_disabling_is_undone_step_by_step():
    model = two_adapters(SmgaConfig(num_frames=4))
    changed, plain = model(VIDEOS), CLIP.make()(VIDEOS.flatten(0, 1))
    with model.disable_adapter():
        with model.disable_adapter():
            assert torch.equal(model(VIDEOS), plain)
        assert torch.equal(model(VIDEOS), plain)
        assert torch.equal(model(VIDEOS, adapter_names=NAMES), plain)
    assert torch.equal(model(VIDEOS), changed)


@torch.no_grad()
def test_weights_load_into_an_adapter_that_is_there(tmp_path):
    source = two_adapters(SmgaConfig(num_frames=4))
    source.save_pretrained(tmp_path)
    model = peft.get_peft_model(CLIP.make(), SmgaConfig(num_frames=4), adapter_name="x").eval()
    model.load_adapter(str(tmp_path / "x"), "x")
    assert torch.equal(model(VIDEOS), source(VIDEOS))
    other = peft.get_peft_model(CLIP.make(), SmgaConfig(num_frames=4, smga_blocks=[0]), adapter_name="x")
    with pytest.raises(DmgalError, match="do not fit the adapter"):
        other.load_adapter(str(tmp_path / "x"), "x")


def test_deleting_every_adapter_leaves_the_backbone():
    model = two_adapters(SmgaConfig(num_frames=4))
    with ignored_warnings():
        model.delete_adapter("x")
        model.delete_adapter("y")
    backbone: nn.Module = model.base_model.unload()
    assert list(backbone.state_dict()) == list(CLIP.make().state_dict())
    assert torch.equal(backbone(VIDEOS.flatten(0, 1)), CLIP.make()(VIDEOS.flatten(0, 1)))
