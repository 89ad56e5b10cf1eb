"""Galleries of class names, alone and beside clips, through the commands and without a text tower at recognition."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from dmgal.backbones import FrameEncoder, encode_class_names, families, load_backbone, load_text_encoder
from dmgal.cli import main
from dmgal.episodes.gallery.gallery_file import load_gallery, save_gallery
from dmgal.episodes.gallery.recognition import recognize_clips
from dmgal.errors import DmgalError
from dmgal.recipes.run import text_lora
from dmgal.recipes.run.gallery import load_model
from dmgal.recipes.run.recognition import ClipRecognizer

WORDS = ("red disc", "blue square", "green cross")
NAMES = [word for name in WORDS for word in ("--name", name)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, save_run):
    folder = tmp_path_factory.mktemp("runs")
    save_run(folder / "smga", "smga")
    save_run(folder / "cmga", "dmgal_adapter")
    return folder


@pytest.fixture(scope="module")
def clips(frame_folders, tmp_path_factory):
    """``folder/class/clip`` with two clips of each of three classes, whose names tiny-clip knows."""
    folder = tmp_path_factory.mktemp("clips")
    for name, words in zip(sorted(path.name for path in (frame_folders / "test").iterdir()), WORDS, strict=False):
        for clip in range(2):
            shutil.copytree(frame_folders / "test" / name / str(clip), folder / words / str(clip))
    return folder


@pytest.fixture
def gallery(tmp_path, capsys):
    """Run dmgal enroll and return the exit code, the output and the path of the gallery."""
    path = tmp_path / "g.safetensors"

    def run(*words):
        capsys.readouterr()
        code = main(["enroll", *map(str, words), "--out", str(path), "--quiet"])
        return code, capsys.readouterr(), path

    return run


def recognized(run, path):
    return ClipRecognizer(load_model(run), load_gallery(path), progress=False)


@torch.no_grad()
@pytest.mark.parametrize("name", ["smga", "cmga"])
def test_class_names_alone_are_zero_shot_recognition(runs, gallery, clips, monkeypatch, capsys, name):
    code, printed, path = gallery(runs / name, *NAMES)
    assert code == 0 and "3 classes, 0 clips" in printed.out
    assert "text: class names alone, 6 prompts" in printed.out and "give no threshold" in printed.out
    texts = encode_class_names(load_text_encoder("tiny-clip"), WORDS)
    monkeypatch.setattr(families, "load_text_encoder", None)  # no text tower any more
    ready, videos = recognized(runs / name, path), torch.randint(0, 256, (2, 4, 3, 48, 48), dtype=torch.uint8)
    expected = texts.logits(FrameEncoder(load_backbone("tiny-clip")).encode(videos)["features"])
    logits = torch.stack([one.logits for one in recognize_clips(ready.task, videos, None)])
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-4)
    assert not ready.unknown
    assert main(["recognize", str(runs / name), str(path), str(clips / "red disc" / "0"), "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "text: class names alone" in printed and "unknown: never, class names alone give no threshold" in printed


def test_names_are_added_and_removed(runs, gallery):
    assert gallery(runs / "smga", *NAMES, "--text.template", "a {}")[0] == 0
    code, _, path = gallery(runs / "smga", "--name", "white bar", "--add")
    before = load_gallery(path)
    assert code == 0 and before.class_names == (*WORDS, "white bar") and before.texts.templates == ("a {}",)
    assert gallery(runs / "smga", "--remove", "blue square")[0] == 0
    now = load_gallery(path)
    assert now.class_names == ("red disc", "green cross", "white bar")
    assert torch.equal(now.texts.features, before.texts.features[[0, 2, 3]])


@torch.no_grad()
def test_clips_and_names_add_their_logits(runs, gallery, clips, capsys):
    run = runs / "smga"
    code, printed, path = gallery(run, clips, "--text.use", "fuse", "--text.weight", "0.5")
    assert code == 0 and "class names beside clips, weight 0.5" in printed.out and "held-out clips" in printed.out
    fused = recognized(run, path)
    videos = torch.randint(0, 256, (2, 4, 3, 48, 48), dtype=torch.uint8)
    both = torch.stack([one.logits for one in recognize_clips(fused.task, videos, None)])
    path.unlink()
    assert gallery(run, clips)[0] == 0
    visual = torch.stack([one.logits for one in recognize_clips(recognized(run, path).task, videos, None)])
    order = [fused.gallery.class_names.index(name) for name in WORDS]
    text = encode_class_names(load_text_encoder("tiny-clip"), fused.gallery.class_names)
    text = text.logits(FrameEncoder(load_backbone("tiny-clip")).encode(videos)["features"])
    assert sorted(order) == [0, 1, 2]
    torch.testing.assert_close(both, visual + 0.5 * text, rtol=1e-4, atol=1e-4)
    assert main(["recognize", str(run), str(path), str(clips / "red disc" / "0"), "--json", "--quiet"]) == 0


def test_clips_are_added_with_the_text_of_their_class(runs, gallery, clips, frame_folders, capsys):
    assert gallery(runs / "smga", clips, "--text.use", "fuse", "--text.template", "{}")[0] == 0
    clip = next(path for path in sorted((frame_folders / "val").iterdir())) / "0"
    code, printed, _ = gallery(runs / "smga", clip, "--class-name", "white bar", "--text.template", "a {}", "--add")
    assert code == 2 and "the same prompts and weight" in printed.err
    code, _, path = gallery(runs / "smga", clip, "--class-name", "white bar", "--add")
    assert code == 0 and load_gallery(path).texts.class_names[-1] == "white bar"
    assert main(["recognize", str(runs / "smga"), str(path), str(clip), "--json", "--quiet"]) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    assert text["use"] == "fuse" and text["templates"] == ["{}"] and text["encoder"] == "tiny-clip"


def test_more_clips_of_a_known_class_need_no_text_tower(runs, gallery, clips, frame_folders, monkeypatch):
    assert gallery(runs / "smga", clips, "--text.use", "fuse")[0] == 0
    monkeypatch.setattr(text_lora, "load_text_encoder", None)
    clip = next(path for path in sorted((frame_folders / "val").iterdir())) / "0"
    code, _, path = gallery(runs / "smga", clip, "--class-name", "red disc", "--add")
    assert code == 0 and sorted(load_gallery(path).shots) == [2, 2, 3]


def test_descriptions_are_saved_and_classes_with_and_without_them_are_not_joined(runs, gallery, tmp_path):
    table = tmp_path / "words.csv"
    table.write_text("class_name,description\n" + "".join(f"{name},small {name}\n" for name in (*WORDS, "white bar")))
    code, printed, path = gallery(runs / "smga", *NAMES, "--text.descriptions", str(table))
    assert code == 0 and "6 prompts and descriptions per class" in printed.out
    assert load_gallery(path).texts.descriptions == tuple((f"small {name}",) for name in WORDS)
    code, printed, _ = gallery(runs / "smga", "--name", "white bar", "--add")
    assert code == 2 and "descriptions=False" in printed.err
    assert gallery(runs / "smga", "--name", "white bar", "--text.descriptions", str(table), "--add")[0] == 0
    assert gallery(runs / "smga", "--remove", WORDS[0])[0] == 0
    assert load_gallery(path).texts.descriptions[-1] == ("small white bar",)


def test_galleries_with_and_without_text_or_clips_are_not_joined(runs, gallery, clips, frame_folders):
    clip = next(path for path in sorted((frame_folders / "val").iterdir())) / "0"
    assert gallery(runs / "smga", *NAMES)[0] == 0
    code, printed, path = gallery(runs / "smga", clip, "--class-name", "white bar", "--add")
    assert code == 2 and "Clips are missing for some classes" in printed.err
    path.unlink()
    assert gallery(runs / "smga", clips)[0] == 0
    flags = ("--class-name", "white bar", "--text.use", "fuse", "--add")
    code, printed, _ = gallery(runs / "smga", clip, *flags)
    assert code == 2 and "Names are missing for some classes" in printed.err


BAD_OPTIONS = {
    "clips and names": (["CLIPS", *NAMES], "need no clips"),
    "only with clips": (["CLIPS", "--text.use", "only"], "need no clips"),
    "equal names": (["--name", "Red_Disc", "--name", "red disc"], "have the same name"),
    "empty name": (["--name", " "], "no names of classes"),
    "unknown words": (["--name", "\U0001f525", "--name", "brush hair"], "knows no word of some class names"),
    "bad template": (["--name", "red", "--text.template", "a video"], "one place for the class name"),
    "cmga": (["CMGA", "CLIPS", "--text.use", "fuse"], "cannot be combined with text"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options_are_refused(runs, gallery, clips, case):
    words, message = BAD_OPTIONS[case]
    run = runs / ("cmga" if "CMGA" in words else "smga")
    code, printed, path = gallery(run, *(clips if word == "CLIPS" else word for word in words if word != "CMGA"))
    assert code == 2 and message in printed.err and not path.exists()


def test_forged_texts_are_refused(runs, gallery, tmp_path):
    path = gallery(runs / "smga", *NAMES)[2]
    true = load_gallery(path)
    texts = true.texts
    for forged in (
        replace(texts, logit_scale="1"),
        replace(texts, features=texts.features[:2]),
        replace(texts, features=texts.features * torch.nan),
        replace(texts, templates=(3,)),
        replace(texts, descriptions=(("red",),)),
    ):
        save_gallery(replace(true, texts=forged), tmp_path / "forged.safetensors")
        with pytest.raises(DmgalError, match="wrong values"):
            load_gallery(tmp_path / "forged.safetensors")
