"""A run whose head learns from text: training, evaluation with and without fusion, and galleries."""

from __future__ import annotations

import json

import pytest
import torch

from dmgal.cli import main
from dmgal.episodes.gallery.gallery_file import load_gallery
from dmgal.recipes.run.config import parse
from dmgal.recipes.run.data import build_catalog
from dmgal.recipes.run.evaluation import Protocol, encode, load_run
from dmgal.recipes.run.folder import Run
from dmgal.recipes.run.text import TextOptions
from dmgal.recipes.train import Train, run

RESULT = "test_2way_1shot_1query_20episodes_seed0"


@pytest.fixture(scope="module")
def trained(named_flags, tmp_path_factory):
    """Two steps of method/clip_fsar."""
    words = ["method/clip_fsar", *named_flags, "--train.steps", "2"]
    recipe = parse(words, prog="test", description="", wrapper=Train)[0].recipe
    return run(recipe, tmp_path_factory.mktemp("clip_fsar") / "run", quiet=True).folder


def test_training_logs_the_loss_between_videos_and_texts(trained):
    entries = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    losses = [entry["losses"] for entry in entries if "losses" in entry]
    assert losses and all(loss["video_text"] > 0 for loss in losses)


@torch.no_grad()
def test_support_videos_know_their_text_in_evaluation(trained):
    recipe, recognizer = load_run(Run(trained))
    encoded = encode(recognizer, recipe, build_catalog(recipe.data), Protocol(), progress=False)
    texts = TextOptions().encode(recipe, encoded.catalog.class_names)
    assert torch.equal(encoded.states.support.state["class_text"], texts.features[encoded.catalog.labels])


@pytest.mark.parametrize(("flags", "use"), [([], "support"), (["--text.use", "fuse", "--text.weight", "1"], "fuse")])
def test_results_say_how_text_was_used(trained, capsys, flags, use):
    assert main(["evaluate", str(trained), "--episodes", "20", "--states", "memory", "--quiet", *flags]) == 0
    result = json.loads((trained / "results" / f"{RESULT}{'_text_fuse' if flags else ''}.json").read_text())
    assert result["protocol"]["text"]["use"] == use and "text: class names" in capsys.readouterr().out


def test_galleries_always_have_the_text(trained, frame_folders, tmp_path, capsys):
    clip = next(iter(sorted((frame_folders / "test").iterdir()))) / "0"
    path = tmp_path / "g.safetensors"
    words = ["enroll", str(trained), str(clip), "--class-name", "red disc", "--out", str(path), "--quiet"]
    assert main(words) == 0
    assert load_gallery(path).texts.weight == 0.0
    assert main(["recognize", str(trained), str(path), str(clip), "--json", "--quiet"]) == 0
    assert main([*words[:-1], "--quiet"]) == 2  # the gallery exists


def test_unknown_class_names_are_refused_before_training(data_flags, tmp_path, capsys):
    assert main(["train", "method/clip_fsar", *data_flags, "--out", str(tmp_path / "run")]) == 2
    assert "knows no word of some class names" in capsys.readouterr().err
