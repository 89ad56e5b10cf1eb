"""The bundled motion adapter: beside a frozen backbone, as the start of training, and as the default of enrollment."""

from __future__ import annotations

import json
import logging
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file

import dmgal.adapters
from dmgal.backbones import load_backbone
from dmgal.cli import main
from dmgal.episodes.gallery.gallery_file import load_gallery
from dmgal.errors import DmgalError
from dmgal.recipes.run.build import PRIOR, build_recognizer
from dmgal.recipes.run.config import parse
from dmgal.recipes.run.data import build_catalog
from dmgal.recipes.run.evaluation import load_run
from dmgal.recipes.run.folder import Run
from dmgal.recipes.train import Train, run
from dmgal.recipes.training.tasks import Accuracies, Validation, warn_of_few_classes

NAME = "tiny-clip-motion"
START = ["method/smga", "--adapter.start", NAME]


def recipe_of(*words):
    return parse(words, prog="test", description="", wrapper=Train)[0].recipe


@pytest.fixture
def flags(data_flags):
    """Flags of a recipe on a small data set, with the number of frames of the bundled adapter."""
    return [*data_flags, "--data.num-frames", "8"]


def train(out, *words):
    return main(["train", *map(str, words), "--out", str(out)])


def test_bundled_adapter_loads_by_name_and_is_small():
    folder = dmgal.adapters.pretrained(NAME)
    model = peft.PeftModel.from_pretrained(load_backbone("tiny-clip"), folder)
    assert model.peft_config["default"].backbone == "tiny-clip" and NAME in dmgal.adapters.bundled_adapters()
    files = list(dmgal.adapters.BUNDLED.joinpath(NAME).iterdir())
    assert sum(file.stat().st_size for file in files) < 300_000
    assert {file.name for file in files} == {"adapter_config.json", "adapter_model.safetensors", "README.md"}


def test_frozen_backbone_and_expert_share_a_backbone_and_are_evaluated(tmp_path, flags, capsys):
    assert train(tmp_path / "run", "method/motion", *flags) == 0
    assert not Run(tmp_path / "run").adapter.exists() and not list((tmp_path / "run").glob("*.safetensors"))
    _, recognizer = load_run(Run(tmp_path / "run"))
    encoder = recognizer.encoder
    assert encoder.streams[0] is encoder.streams[1] and encoder.adapted == (False, True)
    assert not any(parameter.requires_grad for parameter in recognizer.parameters())
    assert main(["evaluate", str(tmp_path / "run"), "--episodes", "20", "--shots", "2", "--quiet"]) == 0
    first = json.loads(next((tmp_path / "run" / "results").iterdir()).read_text())["results"]
    assert main(["evaluate", str(tmp_path / "run"), "--episodes", "20", "--shots", "2", "--quiet"]) == 0  # cached
    assert json.loads(next((tmp_path / "run" / "results").iterdir()).read_text())["results"] == first
    assert first["accuracy"]["percent"] > 50


@pytest.mark.slow
def test_run_with_an_adapter_is_an_expert_too(tmp_path, data_flags, save_run):
    expert = save_run(tmp_path / "expert", "smga")
    assert train(tmp_path / "run", "method/motion", *data_flags, "--backbone.expert", expert) == 0
    weights = Run(expert).adapter / "adapter_model.safetensors"
    before = states_key(tmp_path / "run")
    shutil.copy(weights, tmp_path / "copy")
    other = save_run(tmp_path / "other", "smga", "--train.seed", "1")
    shutil.copy(Run(other).adapter / "adapter_model.safetensors", weights)
    assert states_key(tmp_path / "run") != before  # states of another expert are not reused
    shutil.copy(tmp_path / "copy", weights)
    assert states_key(tmp_path / "run") == before


def states_key(folder):
    from dmgal.episodes.evaluation.identity import describe

    return describe(load_run(Run(folder))[1])


def test_training_starts_from_the_bundled_adapter(tmp_path, flags):
    words = [*START, *flags, "--train.steps", "1", "--train.learning-rate", "0"]
    folder = run(recipe_of(*words), tmp_path / "run", quiet=True)
    saved = peft.load_peft_weights(str(folder.adapter), device="cpu")
    bundled = peft.load_peft_weights(dmgal.adapters.pretrained(NAME), device="cpu")
    assert saved.keys() == bundled.keys()
    assert all(torch.equal(saved[name], bundled[name]) for name in saved)
    assert load_run(folder)[0].adapter == {"start": NAME}


def test_start_is_kept_unless_validation_is_surely_better(tmp_path, flags, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    words = [*START, *flags, "--train.steps", "4", "--train.validate-every", "1"]
    rising = iter([0.5, 0.55, 0.7, 0.9, 0.95])
    halves = torch.tensor([0.0, 1.0] * 50, dtype=torch.float64)
    classes = torch.full((5,), 0.5, dtype=torch.float64)

    def accuracies(self, step):
        """The start, a gain within the noise of tasks, one in a single class, and two in all tasks and classes."""
        value = next(rising)
        if value == 0.7:
            return Accuracies(torch.full((100,), value, dtype=torch.float64), classes + torch.eye(5)[0])
        return Accuracies(halves if value == 0.5 else torch.full((100,), value, dtype=torch.float64), classes + value)

    monkeypatch.setattr(Validation, "accuracies", accuracies)
    folder = run(recipe_of(*words), tmp_path / "run", quiet=True)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("step")]
    assert [("best so far" in line) for line in lines] == [True, False, False, True, True]
    assert "over the start" in lines[3] and "over the previous best" in lines[4]
    saved = peft.load_peft_weights(str(folder.adapter), device="cpu")
    bundled = peft.load_peft_weights(dmgal.adapters.pretrained(NAME), device="cpu")
    assert any(not torch.equal(saved[name], bundled[name]) for name in saved)


@pytest.mark.slow
def test_pull_to_start_decays_towards_the_start(tmp_path, flags):
    """With a share of 1/2 the weights return half way to the start after each step."""
    rate, moved = 0.004, {}
    start = {
        f"encoder.backbone.{name}": w
        for name, w in build_recognizer(recipe_of(*START)).encoder.backbone.named_parameters()
    }
    for share in (0.0, 0.5):
        words = [*START, *flags, "--train.steps", "1", "--train.warmup-steps", "0", "--train.schedule", "constant"]
        words += ["--train.learning-rate", str(rate), "--train.pull-to-start", str(share / rate)]
        checkpoint = run(recipe_of(*words), tmp_path / str(share), quiet=True).checkpoints / "step_00000001"
        weights = load_file(checkpoint / "model.safetensors")
        moved[share] = torch.cat([(w - start[n]).flatten() for n, w in weights.items() if n in start]).abs()
    assert moved[0.0].max() > 0.001
    assert torch.allclose(moved[0.5], moved[0.0] / 2, atol=1e-6)


@pytest.mark.parametrize("words, is_warned", [(["method/smga"], True), (START, False), (["method/frozen"], False)])
def test_few_classes_are_warned_of(words, is_warned, flags, caplog):
    recipe = recipe_of(*words, *flags)
    warn_of_few_classes(recipe, build_catalog(recipe.data).split("train"))
    assert ("Only 6 base classes" in caplog.text and "--adapter.start tiny-clip-motion" in caplog.text) == is_warned


@pytest.mark.parametrize(
    "words, message",
    [
        (["--adapter.start", "tiny-clip-motoin"], "did you mean tiny-clip-motion"),
        (["--adapter.start", NAME, "--adapter.bottleneck", "8"], "own options"),
        (["--adapter.start", "3"], "own options"),
        (["--backbone.expert", "nothing"], NAME),
        (["--backbone.expert", NAME, "--adapter.start", NAME], "stands beside a frozen backbone"),
        (["--backbone.expert", NAME, "--backbone.trainable"], "stands beside a frozen backbone"),
        (["method/motion", "--train.steps", "3"], "There is nothing to train"),
        (["method/motion", "--train.frame-memory", "1"], "a single backbone"),
        (["--adapter.start", NAME, "--adapter.peft_type", "LORA"], "an adapter of the type LORA"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_fit_is_one_message(words, message, tmp_path, flags, capsys):
    layers, last = ([words[0]], words[1:]) if "/" in words[0] else ([], words)
    assert train(tmp_path / "run", *layers, *flags, *last) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_another_backbone_is_refused_with_the_command_that_trains_one():
    from tiny_backbones import TINY_BACKBONES

    with pytest.raises(DmgalError, match=r"dmgal train method/smga data/motion_world"):
        dmgal.adapters.load_adapter(TINY_BACKBONES["ViT"].make(), dmgal.adapters.pretrained(NAME))


def test_clips_are_enrolled_and_recognized_without_a_run(frame_folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = sorted(path.name for path in (frame_folders / "test").iterdir())
    for name in names:
        for clip in ("0", "1"):
            shutil.copytree(frame_folders / "test" / name / clip, tmp_path / "clips" / name / clip)
    assert main(["enroll", "clips", "--out", "g.safetensors", "--quiet"]) == 0
    assert "next: dmgal recognize g.safetensors CLIP" in capsys.readouterr().out
    gallery = load_gallery(tmp_path / "g.safetensors")
    assert gallery.n_way == len(names) and "motion expert" in gallery.made_with
    clip = frame_folders / "test" / names[0] / "2"
    assert main(["recognize", "g.safetensors", str(clip), "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["videos"][0]["scores"].keys() == set(names)
    assert main(["enroll", "--out", "g.safetensors", "--remove", names[0], "--quiet"]) == 0
    assert load_gallery(tmp_path / "g.safetensors").n_way == len(names) - 1


def test_gallery_of_the_default_is_refused_with_a_run(frame_folders, tmp_path, save_run, capsys):
    name = sorted(path.name for path in (frame_folders / "test").iterdir())[0]
    shutil.copytree(frame_folders / "test" / name, tmp_path / "clips" / name)
    gallery = str(tmp_path / "g.safetensors")
    assert main(["enroll", str(tmp_path / "clips"), "--out", gallery, "--quiet"]) == 0
    frozen = save_run(tmp_path / "run", "frozen")
    assert main(["recognize", str(frozen), gallery, str(tmp_path / "clips" / name / "0"), "--quiet"]) == 2
    assert "motion expert" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [
        (["recognize"], "There is no gallery"),
        (["recognize", "galery.safetensors", "clip"], "neither a run nor a gallery"),
        (["recognize", "nothing"], "neither a run nor a gallery"),
        (["recognize", "no_run", "g.safetensors", "clip"], "clip"),
        (["enroll", "no_run", "--remove", "wave"], "holds no run"),
        (["enroll", "run", "more", "most"], "[RUN] CLIPS"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_paths_are_one_message(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error


def test_bundled_name_comes_before_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(dmgal.adapters.pretrained(NAME), tmp_path / NAME)
    assert dmgal.adapters.pretrained(NAME) != NAME and dmgal.adapters.pretrained(f"./{NAME}") == NAME


def test_missing_and_damaged_adapters_are_one_message(tmp_path):
    with pytest.raises(DmgalError, match="Check the path"):
        dmgal.adapters.pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(DmgalError, match="This adapter cannot be read"):
        dmgal.adapters.backbone_of(str(tmp_path))


def test_backbone_is_shared_by_its_weights_whatever_its_name():
    backbone = load_backbone("tiny-clip")
    backbone.dmgal_name = "somewhere/else"
    recipe = recipe_of("method/motion", "--backbone.name", "mine")
    recognizer = build_recognizer(recipe, backbone=backbone)
    assert recognizer.encoder.streams[0] is recognizer.encoder.streams[1]
    assert recognizer.head.prior == PRIOR
