"""A run with a quantized backbone: it trains, is evaluated and enrolled as such, and is never confused with floats."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType

from dmgal.adapters import is_added
from dmgal.backbones import load_backbone, quantization_of
from dmgal.backbones.quantized import KINDS
from dmgal.cli import main
from dmgal.episodes.evaluation.identity import describe
from dmgal.errors import DmgalError
from dmgal.recipes.run.build import build_recognizer, visual_tower_parameters
from dmgal.recipes.run.config import BackboneConfig, Recipe, TrainConfig
from dmgal.recipes.run.evaluation import load_run
from dmgal.recipes.run.exported import export_recognizer
from dmgal.recipes.run.folder import Run
from dmgal.recipes.run.gallery import made_with
from dmgal.recipes.run.layers import bundled_layers, read_layer
from dmgal.recipes.training.checks import _check_unquantized

METHODS = [name for name in bundled_layers() if name.startswith("method/peft_") or name == "method/lora"]


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("int8", "bnb_nf4")]


@pytest.mark.parametrize("kind", ["dynamic_int8", *SLOW])
def test_run_trains_and_is_evaluated(kind: str, data_flags: list[str], tmp_path: Path) -> None:
    pytest.importorskip(KINDS[kind].library, reason="needs dmgal[quantize]")  # type: ignore[index]
    out = tmp_path / "run"
    words = ["method/dmgal_adapter", *data_flags, "--backbone.quantize", kind, "--train.steps", "2", "--out", str(out)]
    assert not main(["train", *words, "--train.validate-every", "1", "--train.checkpoint-every", "1"])
    assert not main(["train", *words, "--train.validate-every", "1", "--train.checkpoint-every", "1", "--resume"])
    assert not main(["evaluate", str(out), "--episodes", "20", "--quiet"])
    (path,) = (out / "results").glob("test_*.json")
    result = json.loads(path.read_text())
    assert 0 <= result["results"]["accuracy"]["percent"] <= 100
    recipe, recognizer = load_run(Run(out))
    assert quantization_of(recognizer.encoder.backbone) == kind == recipe.backbone.quantize
    assert all(p.dtype.is_floating_point for name, p in recognizer.named_parameters() if is_added(name))


def test_float_and_quantized_states_are_told_apart() -> None:
    descriptions, galleries = [], []
    for kind in (None, "dynamic_int8"):
        recipe = Recipe(backbone=BackboneConfig(quantize=kind))  # type: ignore[arg-type]
        recognizer = build_recognizer(recipe)
        descriptions.append(describe(recognizer))
        galleries.append(made_with(recipe, recognizer))
        assert visual_tower_parameters(recognizer) == sum(p.numel() for p in load_backbone("tiny-clip").parameters())
    changed = {name for name in descriptions[0] if descriptions[0][name] != descriptions[1][name]}
    assert changed == {"backbone_weights", "settings"}
    assert set(galleries[1]) - set(galleries[0]) == {"quantization"}
    assert galleries[0]["backbone weights"] != galleries[1]["backbone weights"]


@pytest.mark.parametrize("kind", KINDS)
def test_stock_methods_start_or_are_refused_before_the_backbone_changes(kind: str) -> None:
    pytest.importorskip(KINDS[kind].library, reason="needs dmgal[quantize]")  # type: ignore[index]
    for name in METHODS if kind == "dynamic_int8" else ("method/lora", "method/peft_dora", "method/peft_loha"):
        backbone = load_backbone("tiny-clip")
        recipe = Recipe(backbone=BackboneConfig(quantize=kind), adapter=read_layer(name)["adapter"])  # type: ignore[arg-type]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PEFT's own, e.g. that layers of torchao cannot be merged
                build_recognizer(recipe, backbone=backbone)
        except DmgalError as error:
            assert "needs the weights as floats" in str(error)
            assert not any(is_added(parameter) for parameter, _ in backbone.named_parameters())


def test_what_does_not_fit_a_quantized_backbone_is_refused(tmp_path: Path) -> None:
    quantized = BackboneConfig(quantize="dynamic_int8")
    for options in ({"trainable": True}, {"dtype": "bf16"}):
        with pytest.raises(DmgalError, match="stays frozen"):
            replace(quantized, **options)
    with pytest.raises(DmgalError, match="computes in float32"):
        Recipe(backbone=quantized, train=TrainConfig(precision="float64"))
    recipe = Recipe(backbone=quantized)
    with pytest.raises(DmgalError, match="cannot be exported"):
        export_recognizer(recipe, build_recognizer(recipe), tmp_path, "torch")
    with pytest.raises(DmgalError, match=r"trains in one process(.|\n)*under MULTI_CPU"):
        _check_unquantized(recipe, SimpleNamespace(distributed_type=DistributedType.MULTI_CPU))
