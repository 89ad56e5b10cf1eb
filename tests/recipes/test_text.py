"""Evaluation with the text of class names: its weight, its report, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from dmgal.backbones import FrameEncoder, encode_class_names, load_backbone, load_text_encoder
from dmgal.cli import main
from dmgal.errors import DmgalError
from dmgal.files import write_text
from dmgal.recipes.run import evaluation
from dmgal.recipes.run.data import build_catalog
from dmgal.recipes.run.evaluation import Protocol, encode_with_text, load_run
from dmgal.recipes.run.folder import Run
from dmgal.recipes.run.text import TextOptions, with_text
from dmgal.videos.moving_shapes.drawing import COLORS

EPISODES = "test_2way_1shot_1query_40episodes_seed0"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, save_run):
    folder = tmp_path_factory.mktemp("runs")
    save_run(folder / "frozen", "frozen", "--train.steps", "0")
    save_run(folder / "smga", "smga")
    save_run(folder / "motion", "motion", "--data.num-frames", "8")
    save_run(folder / "cmga", "dmgal_adapter")
    save_run(folder / "tuned", "frozen", "--backbone.trainable")
    return folder


@pytest.fixture(scope="module")
def descriptions(frame_folders, tmp_path_factory):
    """Words that tiny-clip knows, for all classes."""
    names = sorted(path.name for split in ("train", "val", "test") for path in (frame_folders / split).iterdir())
    words = [f"{color} {shape}" for color in COLORS for shape in ("disc", "square", "cross")]
    path = tmp_path_factory.mktemp("text") / "descriptions.csv"
    rows = [f"{name},{text}" for name, text in zip(names, words, strict=False)]
    write_text(path, "\n".join(["class_name,description", *rows]))
    return path


@pytest.fixture
def evaluated(capsys, descriptions):
    def run(folder, *flags):
        capsys.readouterr()
        flags = [*flags, "--text.descriptions", str(descriptions)] if "--text.use" in flags else flags
        code = main(["evaluate", str(folder), "--episodes", "40", "--states", "memory", "--quiet", *flags])
        return code, capsys.readouterr()

    return run


def result(folder, suffix):
    return json.loads((folder / "results" / f"{EPISODES}{suffix}.json").read_text())


@pytest.mark.parametrize("name", ["frozen", "smga", "motion", "tuned"])
@torch.no_grad()
def test_text_is_compared_with_the_frozen_backbone(runs, name):
    recipe, recognizer = load_run(Run(runs / name))
    texts = encode_class_names(load_text_encoder("tiny-clip"), ["red disc", "blue square"])
    videos = torch.randint(0, 256, (3, recipe.data.num_frames, 3, 48, 48), dtype=torch.uint8)
    zero_shot = texts.logits(FrameEncoder(load_backbone("tiny-clip")).encode(videos)["features"])
    labels = torch.tensor([0, 1, 1])
    visual = recognizer.compare(recognizer.encode(videos), labels, recognizer.encode(videos)).logits
    for is_only, expected in ((True, zero_shot), (False, visual + zero_shot)):
        both = with_text(recognizer, recipe, texts, is_only)
        state = both.encode(videos)
        support = type(state)(state, class_text=texts.features[labels])
        torch.testing.assert_close(both.compare(support, labels, state).logits, expected, rtol=1e-5, atol=1e-4)


def test_weight_is_chosen_on_validation_classes_and_reported(runs, evaluated, monkeypatch):
    seen, choose = [], evaluation.choose_weight

    def spy(recognizer, encoded, *arguments):
        seen.append(set(encoded.catalog.class_names))
        return choose(recognizer, encoded, *arguments)

    monkeypatch.setattr(evaluation, "choose_weight", spy)
    code, printed = evaluated(runs / "frozen", "--text.use", "fuse")
    assert code == 0, printed.err
    catalog = build_catalog(load_run(Run(runs / "frozen"))[0].data)
    assert seen == [set(catalog.split("val").class_names)]
    assert "chosen on validation classes" in printed.out
    text = result(runs / "frozen", "_text_fuse")["protocol"]["text"]
    scores = text["weight_on_validation"]
    assert text["encoder"] == "tiny-clip" and len(text["templates"]) == 6
    assert scores[f"{text['weight']:g}"] == max(scores.values())
    assert evaluated(runs / "frozen")[0] == 0
    assert result(runs / "frozen", "")["protocol"]["text"] is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--text.use", "fuse", "--split", "val"], "on the classes that are reported"),
        (["--text.weight", "1"], "have no effect"),
        (["--text.template", "a film of {}"], "have no effect"),
    ],
)
def test_options_that_would_mislead_are_refused(runs, evaluated, flags, message):
    code, printed = evaluated(runs / "frozen", *flags)
    assert code == 2 and message in printed.err


@pytest.mark.slow
def test_weight_0_is_the_run_alone(runs, evaluated):
    assert evaluated(runs / "smga")[0] == evaluated(runs / "smga", "--text.use", "fuse", "--text.weight", "0")[0] == 0
    assert result(runs / "smga", "")["results"] == result(runs / "smga", "_text_fuse")["results"]


def test_class_names_alone_with_own_prompts(runs, evaluated):
    code, printed = evaluated(runs / "frozen", "--text.use", "only", "--text.template", "a {} shape")
    assert code == 0 and "class names alone, 1 prompts per class by tiny-clip" in printed.out
    text = result(runs / "frozen", "_text_only")["protocol"]["text"]
    assert text["templates"] == ["a {} shape"] and text["weight"] is None


@pytest.mark.slow
def test_states_with_text_do_not_replace_those_without(runs, descriptions, tmp_path, capsys):
    cache, text = ["--cache", str(tmp_path)], ["--text.descriptions", str(descriptions), "--text.use"]
    for flags, num_encoded in (([], 16), ([*text, "only"], 16), ([], 0), ([*text, "only"], 0)):
        assert main(["evaluate", str(runs / "smga"), "--episodes", "4", *cache, *flags]) == 0
        assert f"{num_encoded} of 16 videos encoded" in capsys.readouterr().err


def test_cmga_is_refused(runs, evaluated):
    code, printed = evaluated(runs / "cmga", "--text.use", "fuse")
    assert code == 2 and "cannot be combined with text" in printed.err and "Cmga" in printed.err


def test_names_without_a_known_word_are_refused(runs, capsys):
    assert main(["evaluate", str(runs / "frozen"), "--text.use", "only", "--quiet"]) == 2
    assert "knows no word of some class names" in capsys.readouterr().err


def test_open_weight_without_validation_classes_is_refused(runs):
    recipe, recognizer = load_run(Run(runs / "frozen"))
    test = build_catalog(recipe.data).split("test")
    with pytest.raises(DmgalError, match="weight of the text cannot be chosen"):
        encode_with_text(recognizer, recipe, test, Protocol(), TextOptions("fuse"))


@pytest.mark.parametrize("first", ["Brush_Hair", "brush [hair]"])
def test_names_of_two_splits_differ(runs, first):
    """A novel class is no base class under another spelling."""
    recipe, recognizer = load_run(Run(runs / "frozen"))
    catalog = build_catalog(recipe.data)
    catalog = replace(catalog, class_names=(first, *catalog.class_names[1:-1], "brush hair"))
    with pytest.raises(DmgalError, match="have the same name") as caught:
        encode_with_text(recognizer, recipe, catalog, Protocol(), TextOptions("only"))
    assert f"{first!r} and 'brush hair'" in caught.value.received
