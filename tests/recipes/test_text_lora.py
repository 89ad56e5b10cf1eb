"""A run with LoRA in the text tower beside a motion adapter: files, resuming, texts of novel classes, refusals."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import tiny_backbones
import torch
from accelerate.utils import DistributedType
from trainings import assert_same_bits, losses, trained_together

from dmgal.cli import main
from dmgal.episodes.gallery.gallery_file import load_gallery
from dmgal.errors import DmgalError
from dmgal.recipes.run import text_lora
from dmgal.recipes.run.config import Recipe, TextConfig
from dmgal.recipes.run.data import build_catalog
from dmgal.recipes.run.evaluation import Protocol, encode, load_run
from dmgal.recipes.run.folder import Run
from dmgal.recipes.run.gallery import GalleryModel
from dmgal.recipes.run.tensors import read_tensors
from dmgal.recipes.run.text import TextOptions
from dmgal.recipes.run.text_lora import encoder_name, num_trained
from dmgal.recipes.training.checks import _check_unsharded_text_tower

METHOD = ["method/smga", "method/clip_fsar"]
LORA = ["--backbone.no-trainable", "--text.lora", "2"]
STEPS = ["--train.steps", "3", "--train.checkpoint-every", "1", "--train.keep-checkpoints", "3"]
RATE = ["--train.learning-rate", "0.01", "--train.warmup-steps", "0"]
RESULT = "test_2way_1shot_1query_20episodes_seed0"


@pytest.fixture(scope="module")
def words(named_flags):
    return ["train", *METHOD, *named_flags, *LORA, *STEPS, *RATE]


@pytest.fixture(scope="module")
def trained(words, tmp_path_factory):
    """A single step, at a rate that changes the texts."""
    out = tmp_path_factory.mktemp("text_lora") / "run"
    assert main([*words, "--train.steps", "1", "--out", str(out)]) == 0
    return out


def test_lora_is_saved_like_an_adapter_and_as_in_the_checkpoint(trained):
    text = trained / "adapter" / "text"
    config = json.loads((text / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 4)
    assert config["base_model_name_or_path"] == "tiny-clip"
    saved = read_tensors(text / "adapter_model.safetensors")
    checkpoint = read_tensors(sorted((trained / "checkpoints").iterdir())[-1] / "model.safetensors")
    last = {
        name.removeprefix("head.text_tower.model.").replace(".default", ""): value
        for name, value in checkpoint.items()
        if name.startswith("head.text_tower.")
    }
    assert saved.keys() == last.keys() and all(torch.equal(saved[name], last[name]) for name in saved)
    assert not any("text_tower" in name for name in read_tensors(trained / "adapter" / "weights.safetensors"))
    assert sum(value.abs().sum() for name, value in saved.items() if "lora_B" in name) > 0


@torch.no_grad()
def test_novel_classes_have_the_text_of_the_trained_tower(trained):
    recipe, recognizer = load_run(Run(trained))
    encoded = encode(recognizer, recipe, build_catalog(recipe.data), Protocol(), progress=False)
    names = encoded.catalog.class_names
    texts = TextOptions().encode(recipe, names, Run(trained).text_lora)
    assert torch.equal(encoded.states.support.state["class_text"], texts.features[encoded.catalog.labels])
    assert texts.encoder.startswith("tiny-clip with LoRA ") and encoder_name(recipe, None) == "tiny-clip"
    lora = sum(tensor.numel() for tensor in read_tensors(trained / "adapter/text/adapter_model.safetensors").values())
    trained_here = sum(p.numel() for p in recognizer.parameters() if p.requires_grad)
    assert num_trained(recognizer, recipe) == trained_here + lora


@pytest.mark.slow
def test_resuming_is_exact(words, tmp_path):
    trained, out = tmp_path / "whole", tmp_path / "run"
    assert main([*words, "--out", str(trained)]) == 0
    shutil.copytree(trained, out)
    for folder in sorted((out / "checkpoints").iterdir())[1:]:
        shutil.rmtree(folder)
    shutil.rmtree(out / "adapter")
    assert main([*words, "--out", str(out), "--resume"]) == 0
    assert_same_bits(trained, out)


@pytest.mark.slow
@pytest.mark.parametrize("use", ["no", "fuse", "only"])
def test_results_name_the_lora(trained, use):
    flags = {"no": [], "fuse": ["--text.use", "fuse", "--text.weight", "1"], "only": ["--text.use", "only"]}[use]
    assert main(["evaluate", str(trained), "--episodes", "20", "--states", "memory", "--quiet", *flags]) == 0
    name = f"{RESULT}{'' if use == 'no' else f'_text_{use}'}.json"
    text = json.loads((trained / "results" / name).read_text())["protocol"]["text"]
    assert "LoRA" in text["encoder"]


@pytest.mark.slow
def test_galleries_keep_the_text_and_recognize_without_a_tower(trained, frame_folders, tmp_path, monkeypatch):
    clip = next(iter(sorted((frame_folders / "test").iterdir()))) / "0"
    path = tmp_path / "g.safetensors"
    enroll = ["enroll", str(trained), str(clip), "--class-name", "red disc", "--out", str(path), "--quiet"]
    assert main(enroll) == 0
    gallery = load_gallery(path)
    assert gallery.texts.encoder.startswith("tiny-clip with LoRA ") and "LoRA of the text tower" in gallery.made_with

    def refuse(name):
        raise AssertionError(f"text tower of {name}")

    with monkeypatch.context() as patch:
        patch.setattr(text_lora, "load_text_encoder", refuse)
        assert main(["recognize", str(trained), str(path), str(clip), "--json", "--quiet"]) == 0
    recipe, recognizer = load_run(Run(trained))
    recognizer.head.text_lora = None
    with pytest.raises(DmgalError, match="LoRA of the text tower=None"):
        gallery.check_model(GalleryModel(recipe, recognizer).made_with)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["method/smga"], "Nothing trains the LoRA of the text tower"),
        pytest.param(
            [*METHOD, "--train.steps", "0"], "Nothing trains the LoRA of the text tower", marks=pytest.mark.slow
        ),
    ],
)
def test_refusals_before_a_folder_is_made(named_flags, tmp_path, capsys, changes, message):
    methods = [word for word in changes if word.startswith("method/")]
    flags = [*LORA, "--train.steps", "1", *changes[len(methods) :]]
    assert main(["train", *methods, *named_flags, *flags, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()
    with pytest.raises(DmgalError, match="must be at least 1"):
        TextConfig(lora=0)


@pytest.mark.slow
def test_a_backbone_without_a_text_tower_is_refused(named_flags, tmp_path, capsys):
    tiny_backbones.of_transformers("Dinov2").save_pretrained(tmp_path / "dino")
    flags = [*LORA, "--backbone.name", str(tmp_path / "dino"), "--out", str(tmp_path / "run")]
    assert main(["train", "method/clip_fsar", *named_flags, *flags]) == 2
    assert "This backbone has no text tower" in capsys.readouterr().err


def test_sharded_weights_are_refused():
    recipe = Recipe(text=TextConfig(lora=2))
    with pytest.raises(DmgalError, match="all its weights on every process"):
        _check_unsharded_text_tower(recipe, SimpleNamespace(distributed_type=DistributedType.FSDP))
    _check_unsharded_text_tower(recipe, SimpleNamespace(distributed_type=DistributedType.MULTI_CPU))


def test_a_run_without_its_lora_is_refused(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "adapter" / "text")
    assert main(["evaluate", str(tmp_path / "run"), "--quiet"]) == 2
    assert "no trained weights yet" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_without_a_motion_adapter_keeps_all_weights_together(named_flags, tmp_path):
    words = ["train", "method/clip_fsar", *named_flags, "--text.lora", "2", "--train.steps", "1"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    assert {path.name for path in (tmp_path / "run" / "adapter").iterdir()} == {"text", "weights.safetensors"}
    assert main(["evaluate", str(tmp_path / "run"), "--episodes", "20", "--states", "memory", "--quiet"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--train.two-pass", "1"], ["--backbone.checkpoint-blocks"]], ids=lambda f: f[0])
def test_saving_memory_changes_no_loss(words, tmp_path, flags):
    words = [*words, "--train.precision", "float64"]
    for name, more in (("plain", []), ("saving", flags)):
        assert main([*words, *more, "--out", str(tmp_path / name)]) == 0
    assert losses(tmp_path / "saving") == pytest.approx(losses(tmp_path / "plain"), rel=0, abs=1e-9)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(words, tmp_path):
    words = [*words, "--train.precision", "float64", "--train.tasks-per-step", "2"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    codes, errors = trained_together({"processes": 2, "words": [*words[1:], "--out", str(tmp_path / "two")]})
    assert codes == [[0, 0]], errors[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=0, abs=1e-9)
