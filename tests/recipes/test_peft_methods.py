"""Every PEFT method in a recipe is built, or refused with one message before the first step."""

from __future__ import annotations

import warnings
from copy import deepcopy

import peft
import pytest

import dmgal.adapters  # noqa: F401  (registers ours)
from dmgal.backbones import load_backbone
from dmgal.errors import DmgalError
from dmgal.recipes.run.build import build_recognizer
from dmgal.recipes.run.config import Recipe

METHODS = sorted(kind.value for kind in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING)
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


@pytest.mark.parametrize("method", METHODS)
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
