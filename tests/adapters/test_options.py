"""Options of adapter configs: choices, defaults, and errors that name the valid range."""

from __future__ import annotations

import itertools
from dataclasses import replace

import peft
import pytest
import torch
from adapter_cases import ADAPTER_CASES, REFUSED
from tiny_backbones import TINY_BACKBONES
from torch import nn

from dmgal.adapters import (
    AdapterLayer,
    AIMConfig,
    BitFitConfig,
    BitFitModel,
    BlockTuner,
    D2STConfig,
    DmgalConfig,
    SideConfig,
    SmgaConfig,
    STAdapterConfig,
    register,
)
from dmgal.adapters.motion import BottleneckShape, MotionBottleneck
from dmgal.backbones import load_backbone
from dmgal.backbones.spec import BlockParts
from dmgal.errors import DmgalError


def make(name: str = "open_clip visual") -> nn.Module:
    return TINY_BACKBONES[name].make()


def completed(config: peft.PeftConfig) -> peft.PeftConfig:
    return peft.get_peft_model(make(), config).peft_config["default"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: DmgalConfig(smga_blocks=[3]), r"from -3 to 2"),
        (lambda: DmgalConfig(cmga_blocks=3), "a list of whole numbers"),
        (lambda: DmgalConfig(smga_blocks=[1], cmga_blocks=[1]), "no block in both"),
        (lambda: DmgalConfig(smga_blocks=[], cmga_blocks=[]), "at least one block"),
        (lambda: DmgalConfig(bottleneck=0), "at least 1"),
        (lambda: DmgalConfig(motion_width=True), "at least 1"),
        (lambda: DmgalConfig(num_frames=1), "at least 2"),
        (lambda: DmgalConfig(scales="triple"), "'single' or 'multi'"),
        (lambda: DmgalConfig(directions="none"), "'shared' or 'separate'"),
        (lambda: DmgalConfig(smga_placement="beside"), "'after' or 'before'"),
        (lambda: DmgalConfig(signed="yes"), "True or False"),
        (lambda: DmgalConfig(target_modules=["c_fc"]), "smga_blocks"),
        (lambda: STAdapterConfig(bottleneck=0), "at least 1"),
        (lambda: SideConfig(bottleneck=0), "at least 1"),
        (lambda: STAdapterConfig(places="mlp"), r"'attention' or 'attention\+mlp'"),
        (lambda: STAdapterConfig(kernel=(2, 1, 1)), "three odd numbers"),
        (lambda: STAdapterConfig(blocks=[-4]), r"from -3 to 2"),
        (lambda: AIMConfig(bottleneck=-1), "at least 1"),
        (lambda: D2STConfig(bottleneck=6), "divides by both"),
        (lambda: D2STConfig(num_heads=0), "at least 1"),
        (lambda: D2STConfig(num_heads=None), "at least 1"),
        (lambda: BitFitConfig(blocks="all"), "a list of whole numbers"),
        (lambda: AIMConfig(blocks=[]), "at least one block"),
        (lambda: AIMConfig(scale=float("nan")), "a finite number"),
        (lambda: STAdapterConfig(kernel=3), "three odd numbers"),
        (lambda: STAdapterConfig(kernel=(3, 1)), "three odd numbers"),
        (lambda: DmgalConfig(num_frames=None), "at least 2"),
        (lambda: BitFitConfig(target_modules=["c_fc"]), "chosen by blocks"),
    ],
)
def test_invalid_option_error_lists_valid_values(config, message):
    with pytest.raises(DmgalError, match=message):
        completed(config())


def test_names_and_prefixes_of_peft_cannot_be_registered():
    class NamedLikePeft(BitFitConfig):
        kind = "LORA"

    class NewName(BitFitConfig):
        kind = "NEW"

    class PrefixOfPeft(AdapterLayer):
        child, prefix = "new", "lora_"

    class NewModel(BlockTuner):
        tuner_layer_cls = PrefixOfPeft

    with pytest.raises(RuntimeError, match="method named LORA"):
        register(NamedLikePeft, BitFitModel)
    with pytest.raises(RuntimeError, match="'lora_' belongs to"):
        register(NewName, NewModel)


def test_defaults_follow_width_and_depth():
    config = completed(DmgalConfig())
    assert (config.smga_blocks, config.cmga_blocks) == ([0, 1], [2])
    assert (config.bottleneck, config.motion_width, config.grid) == (8, 8, [4, 4])
    assert completed(STAdapterConfig()).bottleneck == 16
    assert completed(AIMConfig()).bottleneck == 8
    assert completed(D2STConfig()).bottleneck == 8


@pytest.mark.parametrize("kind", [STAdapterConfig, AIMConfig, D2STConfig, BitFitConfig])
def test_blocks_option_chooses_blocks(kind):
    model = peft.get_peft_model(make(), kind(blocks=[-1, 0]))
    prefix = peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING[kind.kind]
    blocks = {name.split("resblocks.")[1][0] for name, _ in model.named_parameters() if prefix in name}
    assert blocks == {"0", "2"}


def test_one_config_serves_any_number_of_backbones():
    for kind in (DmgalConfig, STAdapterConfig, AIMConfig, D2STConfig, BitFitConfig):
        config = kind(num_frames=4)
        for name in ("open_clip visual", "transformers CLIP", "hand-written non-square"):
            model = peft.get_peft_model(make(name), config)
            assert model.peft_config["default"].width == 32 and config.width is None


@pytest.mark.slow
def test_only_unsupported_pairs_are_refused():
    refused = set()
    for backbone, adapter in itertools.product(TINY_BACKBONES, ADAPTER_CASES):
        try:
            peft.get_peft_model(make(backbone), ADAPTER_CASES[adapter])
        except DmgalError as error:
            assert "is not supported on this backbone" in str(error)
            refused.add((backbone, adapter))
    assert refused == REFUSED


def test_unknown_block_parts_are_refused_by_adapters_that_need_them():
    for config in (AIMConfig(), STAdapterConfig(places="attention+mlp")):
        model = make("hand-written")
        model.dmgal_spec = _without_parts(model)
        with pytest.raises(DmgalError, match="known"):
            peft.get_peft_model(model, config)
    peft.get_peft_model(model, STAdapterConfig())


def _without_parts(model: nn.Module):
    from dataclasses import replace

    from dmgal.backbones.families import find_spec

    return replace(find_spec(model), parts=BlockParts(attention_norm="norm1"), attend=None)


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        (DmgalConfig(), 3.76),
        (STAdapterConfig(), 7.11),
        (STAdapterConfig(places="attention+mlp"), 14.22),
        (AIMConfig(), 10.65),
        (D2STConfig(), 7.27),
        (BitFitConfig(), 0.10),
    ],
    ids=lambda value: getattr(value, "kind", value),
)
def test_number_of_parameters_on_vit_b16(config, millions, vit_b16):
    model = peft.get_peft_model(vit_b16, config)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    model.unload()
    assert round(trained / 1e6, 2) == millions


@pytest.fixture(scope="module")
def vit_b16() -> nn.Module:
    return load_backbone("open_clip:ViT-B-16")


def test_separate_directions_have_separate_weights():
    def names(directions):
        model = peft.get_peft_model(make(), SmgaConfig(directions=directions))
        return {name for name, _ in model.named_parameters()}

    added = names("separate") - names("shared")
    assert {name.split("default.")[1].split(".")[0] for name in added} == {"reduce_backward", "align_backward"}


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_one_direction_takes_the_place_of_both_with_the_same_weights(direction):
    shape = BottleneckShape(8, 4, 4, num_frames=3, num_prefix_tokens=1, grid=(2, 2))
    both, one = MotionBottleneck(shape, True), MotionBottleneck(replace(shape, directions=direction), True)
    one.load_state_dict(both.state_dict())
    hidden = torch.randn(2, 3, 5, 4)
    expected = getattr(both.motion(hidden), direction)
    assert all(torch.equal(motion, expected) for motion in one.motion(hidden))


def test_refused_adapter_leaves_the_backbone_unchanged():
    model = make()
    with pytest.raises(DmgalError, match="divides by both"):
        peft.get_peft_model(model, D2STConfig(bottleneck=6))
    assert not hasattr(model, "dmgal_layout") and not any(m._forward_pre_hooks for m in model.modules())


def test_bitfit_refuses_a_backbone_without_biases():
    model = make("hand-written")
    for module in model.blocks.modules():
        if getattr(module, "bias", None) is not None:
            module.bias = None
    with pytest.raises(DmgalError, match="has no bias"):
        peft.get_peft_model(model, BitFitConfig())
