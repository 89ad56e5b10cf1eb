"""Every PEFT method in a recipe is built, or refused with one message before the first step."""

from __future__ import annotations

import json
import os
import warnings
from copy import deepcopy
from unittest import mock

import peft
import pytest
import torch
from tiny_backbones import TINY_BACKBONES

from dmgal import testing
from dmgal.adapters import METHODS as STOCK
from dmgal.adapters import is_added, targets
from dmgal.backbones import load_backbone
from dmgal.cli import main
from dmgal.errors import DmgalError
from dmgal.recipes.run.build import build_recognizer
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.folder import Run
from dmgal.recipes.run.layers import bundled_layers, read_layer
from dmgal.recipes.run.tensors import read_tensors
from dmgal.recipes.run.weights import best_state, load_trained_state, save_best
from dmgal.testing import AdapterCase

KINDS = sorted(kind.value for kind in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING)
PROMPTS = (
    "PREFIX_TUNING",
    "PROMPT_TUNING",
    "P_TUNING",
    "CPT",
    "ADAPTION_PROMPT",
    "MULTITASK_PROMPT_TUNING",
    "CARTRIDGE",
)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("tiny-clip")


@pytest.mark.parametrize("method", KINDS)
def test_method_is_built_or_refused(method, backbone):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own
        try:
            recognizer = build_recognizer(Recipe(adapter={"peft_type": method}), backbone=deepcopy(backbone))
        except DmgalError as refused:
            assert "adapter" in str(refused)
        else:
            assert any(parameter.requires_grad for parameter in recognizer.parameters())


@pytest.mark.parametrize("method", PROMPTS)
def test_prompts_of_language_models_are_refused(method, backbone):
    with pytest.raises(DmgalError, match="language model"):
        build_recognizer(Recipe(adapter={"peft_type": method}), backbone=backbone)


def test_method_with_a_call_per_step_is_refused():
    options = {"peft_type": "ADALORA", "target_modules": ["c_fc"], "total_step": 10}
    with pytest.raises(DmgalError, match="call of its own after each step"):
        build_recognizer(Recipe(adapter=options))


def test_unknown_method_lists_those_that_fit():
    with pytest.raises(DmgalError, match="DMGAL") as refused:
        build_recognizer(Recipe(adapter={"peft_type": "DMGALL"}))
    assert "PeftType." not in str(refused.value) and "PREFIX_TUNING" not in str(refused.value)


RECIPES = ["method/lora", *(name for name in bundled_layers() if name.startswith("method/peft_"))]
CHECKS = tuple(
    check for check in testing.ADAPTER_CHECKS if not any(word in check.__name__ for word in ("lora", "modules_to_save"))
)
"""Of PEFT's own combinations, only those with our adapters are our promise."""
ROUNDS = ("method/peft_boft",)
"""Methods that multiply by an identity matrix, which rounds."""
WRAPPED = ("open_clip visual", "hand-written (N,B,C)")
"""Backbones with torch's attention. LoRA's wrapper adds to its weights and subtracts again, which rounds."""


@pytest.fixture(autouse=True)
def environment():
    """Undo that BOFT sets the compilers."""
    with mock.patch.dict(os.environ):
        yield


def case_of(recipe, backbone):
    """Return the case of a recipe's adapter with the layers of a tiny backbone."""
    options, tiny = dict(read_layer(recipe)["adapter"]), TINY_BACKBONES[backbone]
    kind = options.pop("peft_type")
    config = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind](**options, **targets(tiny.make(), kind, **options))
    rounds = recipe in ROUNDS or backbone in WRAPPED
    return AdapterCase(tiny.make, config, tiny.videos(), features=tiny.features, rounding=1e-5 if rounds else 0.0)


def test_every_stock_method_has_a_recipe():
    assert {read_layer(name)["adapter"]["peft_type"] for name in RECIPES} == set(STOCK)
    assert all(kind in KINDS for kind in STOCK)


@pytest.mark.parametrize("recipe", RECIPES)
def test_stock_method_starts_as_the_backbone_and_trains_only_itself(recipe):
    case = case_of(recipe, WRAPPED[0])
    with torch.no_grad():
        assert case.is_plain(case.answer(case.inject()))
    testing.adapters.check_gradients_reach_all_adapter_parameters_and_no_others(case)


def test_lora_leaves_the_frozen_weights_of_torchs_attention_unchanged():
    """PEFT would leave rounding errors in them, which no checkpoint holds. A resumed run would differ."""
    recognizer = build_recognizer(Recipe(adapter=read_layer("method/lora")["adapter"])).train()
    parameters = dict(recognizer.named_parameters())
    frozen = {name: value.clone() for name, value in parameters.items() if not value.requires_grad}
    for name, value in parameters.items():
        if "lora_B" in name:
            torch.nn.init.normal_(value)
    states = recognizer.encode(torch.rand(2, 2, 3, *recognizer.encoder.image_size))
    sum(value.sum() for value in states.values()).backward()
    assert [
        name for name, value in recognizer.named_parameters() if name in frozen and value.ne(frozen[name]).any()
    ] == []


def test_a_merged_lora_of_torchs_attention_is_taken_out_by_a_call_without_adapters():
    recognizer = build_recognizer(Recipe(adapter=read_layer("method/lora")["adapter"])).eval()
    model, videos = recognizer.encoder.backbone, torch.rand(1, 2, 3, *recognizer.encoder.image_size)
    with torch.no_grad():
        frozen = recognizer.encode(videos)
        for name, value in recognizer.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value)
        expected = recognizer.encode(videos)
        with testing.ignored_warnings():  # the merged attention merges its output layer, too
            model.merge_adapter()
        with model.disable_adapter():
            plain = recognizer.encode(videos)
        trained = recognizer.encode(videos)
    torch.testing.assert_close(plain, frozen)
    torch.testing.assert_close(trained, expected)


@pytest.mark.parametrize("name", RECIPES)
def test_a_saved_stock_method_is_loaded(name, tmp_path):
    recipe, run = Recipe(adapter=read_layer(name)["adapter"]), Run(tmp_path)
    with testing.ignored_warnings():
        recognizer = build_recognizer(recipe).eval()
        for parameter in recognizer.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        save_best(recognizer, best_state(recognizer), run)
        loaded = build_recognizer(recipe, adapter=run.adapter).eval()
    load_trained_state(loaded, read_tensors(run.weights) if run.weights.exists() else {}, run.weights)
    videos = torch.rand(2, 2, 3, *recognizer.encoder.image_size)
    with torch.no_grad():
        ours, saved = loaded.encode(videos), recognizer.encode(videos)
    assert all(torch.equal(ours[key], saved[key]) for key in saved)


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("backbone", ["open_clip visual", "timm ViT", "DINOv2", "hand-written (N,B,C)"])
def test_stock_method_fulfills_the_contract(backbone, recipe, check):
    if recipe in ROUNDS and "bit_for_bit" in check.__name__:
        pytest.skip("checked up to rounding above")
    with testing.ignored_warnings():  # BOFT warns that its CUDA extension is missing
        check(case_of(recipe, backbone))


def test_layers_are_those_that_a_forward_pass_calls():
    """In torch's attention the output layer is never called, and EVA reads the weight of its first layer."""
    clip, eva = TINY_BACKBONES["open_clip visual"].make(), TINY_BACKBONES["timm EVA"].make()
    block = {name.partition("resblocks.0.")[2] for name in targets(clip, "LORA")["target_modules"]} - {""}
    assert block == {"attn", "mlp.c_fc", "mlp.c_proj"}
    dora = targets(clip, "LORA", use_dora=True)["target_modules"]
    assert dora == targets(clip, "LOHA")["target_modules"] and not any(name.endswith("attn") for name in dora)
    assert all(is_norm.endswith(("ln_1", "ln_2")) for is_norm in targets(clip, "LN_TUNING")["target_modules"])
    called = targets(eva, "LOHA")["target_modules"]
    assert "blocks.0.attn.proj" in called and len(set(called)) == len(called)
    assert targets(eva, "IA3")["feedforward_modules"] == [f"blocks.{i}.mlp.fc2" for i in range(3)]
    assert not any(module._forward_pre_hooks for module in clip.modules())


def test_backbone_without_layers_for_a_method_is_refused():
    from torch import nn

    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 8, 8)
            self.layers = nn.Sequential(*(Residual() for _ in range(2)))

        def forward(self, images):
            return self.layers(self.embed(images)).mean((2, 3))

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, maps):
            return maps + self.mix(maps).relu()

    assert targets(Blocks(), "LOHA") == {"target_modules": ["layers.0.mix", "layers.1.mix"]}
    with pytest.raises(DmgalError, match="call no layer of the kind Linear"):
        targets(Blocks(), "VERA")
    with pytest.raises(DmgalError, match="Set target_modules"):
        targets(Blocks(), "HRA")


@pytest.mark.parametrize("name", ["lora_A.default.weight", "hada_w1_a.default", "motion.dmgal_adapter.x.up.bias"])
def test_parameters_of_adapters_are_told_from_the_backbone(name):
    assert is_added(f"base_model.model.layers.0.{name}")
    assert not is_added("base_model.model.soft_mask.backbone_layer.broad_head.weight")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["peft_loha", "peft_vera"])
def test_stock_method_trains_and_evaluates_on_the_command_line(method, data_flags, tmp_path):
    run = str(tmp_path / "run")
    words = [
        "train",
        f"method/{method}",
        *data_flags,
        "--train.steps",
        "3",
        "--train.validate-every",
        "2",
        "--out",
        run,
    ]
    assert main(words) == 0
    saved = json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())
    assert saved["target_modules"], "the layers are saved with the adapter"
    assert main(["evaluate", run, "--episodes", "10"]) == 0


def test_weights_of_another_model_are_refused(tmp_path):
    weights = {"weight": torch.zeros(2, 2), "bias": torch.zeros(2), "scale": torch.zeros(1)}
    with pytest.raises(DmgalError, match=r"do not fit the model(.|\n)*bias=\(2,\), scale=\(1,\), weight=\(2, 2\)"):
        load_trained_state(torch.nn.Linear(2, 3), weights, tmp_path)
