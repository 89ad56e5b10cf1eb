"""Training near float32 with autocast, a frozen bf16 backbone, TF32 and compiled blocks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from trainings import losses, validations

from dmgal.bench import memory, training
from dmgal.cli import main
from dmgal.errors import DmgalError
from dmgal.recipes.run.build import build_recognizer
from dmgal.recipes.run.config import BackboneConfig, Recipe, TrainConfig
from dmgal.recipes.training.launching import autocast_of, make_accelerator, set_precision

STEPS = ["--train.steps", "3", "--data.num-frames", "8"]


def trained(out, data_flags, *flags):
    assert main(["train", "method/dmgal_adapter", *data_flags, *STEPS, *flags, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def in_float32(tmp_path_factory, data_flags):
    return trained(tmp_path_factory.mktemp("runs") / "float32", data_flags)


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(["--train.precision", "bf16"], marks=pytest.mark.slow, id="autocast"),
        pytest.param(["--train.precision", "bf16", "--backbone.dtype", "bf16"], marks=pytest.mark.slow, id="both"),
        pytest.param(["--backbone.dtype", "bf16"], marks=pytest.mark.slow, id="backbone"),
    ],
)
def test_bf16_trains_near_float32_and_saves_float32(tmp_path, data_flags, in_float32, flags):
    run = trained(tmp_path / "run", data_flags, *flags)
    assert losses(run) == pytest.approx(losses(in_float32), abs=0.1)
    assert losses(run) != losses(in_float32)
    saved = {
        **load_file(run / "adapter" / "adapter_model.safetensors"),
        **load_file(run / "adapter/weights.safetensors"),
    }
    assert {tensor.dtype for tensor in saved.values() if tensor.is_floating_point()} == {torch.float32}
    assert main(["evaluate", str(run), "--episodes", "4", "--quiet"]) == 0


@pytest.mark.slow
def test_tf32_on_cpu_equals_float32(tmp_path, data_flags, in_float32):
    run = trained(tmp_path / "run", data_flags, "--train.precision", "tf32")
    assert losses(run) == losses(in_float32) and validations(run) == validations(in_float32)
    assert torch.backends.cuda.matmul.allow_tf32
    recipe = Recipe()
    set_precision(recipe, build_recognizer(recipe), make_accelerator(recipe, tmp_path))
    assert not torch.backends.cuda.matmul.allow_tf32


def test_only_frozen_weights_are_bf16(tmp_path):
    recipe = Recipe(adapter={"peft_type": "DMGAL"}, backbone=BackboneConfig(dtype="bf16"))
    recognizer = build_recognizer(recipe)
    set_precision(recipe, recognizer, make_accelerator(recipe, tmp_path))
    dtypes = {(p.requires_grad, p.dtype) for p in recognizer.parameters()}
    assert dtypes == {(False, torch.bfloat16), (True, torch.float32)}


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(train=TrainConfig(precision="fp16")),
        Recipe(backbone=BackboneConfig(dtype="bf16", trainable=True)),
        Recipe(backbone=BackboneConfig(dtype="bf16"), train=TrainConfig(precision="float64")),
    ],
    ids=["fp16", "trained", "float64"],
)
def test_impossible_precision_raises(recipe):
    with pytest.raises(DmgalError, match="what to do"):
        autocast_of(recipe, torch.device("cpu"))


def test_bench_pairs_bf16_accuracies_and_keeps_earlier_results(tmp_path, frame_folders, in_float32, monkeypatch):
    monkeypatch.setattr(memory, "WAYS", 2)
    out = tmp_path / "training.json"
    out.write_text('{"ratios": 1}')
    where = ["--run", str(in_float32), "--videos", str(frame_folders), "--out", str(out)]
    training.main(["--part", "accuracy", "--episodes", "20", *where])
    report = json.loads(out.read_text())
    found = report["accuracy_in_bf16"]
    assert report["ratios"] == 1 and found["episodes"] == 20
    assert found["difference_points"] == pytest.approx(found["bf16_percent"] - found["float32_percent"], abs=2e-3)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # that torch's compiler reads
def test_compiled_blocks_keep_losses_and_saved_names(tmp_path, data_flags, in_float32, monkeypatch):
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # torch keeps the threads of a pool for later
    run = trained(tmp_path / "run", data_flags, "--train.compile")
    assert losses(run) == pytest.approx(losses(in_float32), abs=1e-4)
    one, other = (load_file(path / "adapter" / "adapter_model.safetensors") for path in (in_float32, run))
    assert one.keys() == other.keys()


def test_frozen_bf16_resnet_keeps_batch_norms_in_float32():
    resnet = transformers.ResNetModel(transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]))
    recipe = Recipe(backbone=BackboneConfig(dtype="bf16"), head={"name": "BiMHM"})
    recognizer = build_recognizer(recipe, backbone=resnet.requires_grad_(False))
    set_precision(recipe, recognizer, make_accelerator(recipe, Path("none")))
    kinds = {type(m).__name__: p.dtype for m in recognizer.modules() for p in m.parameters(recurse=False)}
    assert kinds["Conv2d"] == torch.bfloat16 and kinds["BatchNorm2d"] == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        features = recognizer.encoder.encode(torch.zeros(2, 2, 3, 224, 224, dtype=torch.uint8))["features"]
    assert torch.isfinite(features).all()
