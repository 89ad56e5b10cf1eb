"""Negatives of a gallery through the command line."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from dmgal.cli import main
from dmgal.episodes.gallery.gallery_file import load_gallery


@pytest.fixture(scope="module", params=["dmgal_adapter", "motion"])
def run(request, tmp_path_factory, save_run):
    folder = tmp_path_factory.mktemp("runs") / request.param
    return save_run(folder, request.param, "--data.num-frames", "8" if request.param == "motion" else "4")


@pytest.fixture
def enroll(run, tmp_path, capsys):
    def run_command(*words):
        capsys.readouterr()
        code = main(["enroll", str(run), *map(str, words), "--out", str(tmp_path / "g.safetensors"), "--quiet"])
        return code, capsys.readouterr()

    return run_command


@pytest.fixture
def clips(frame_folders, tmp_path):
    """``classes/CLASS/clip`` with two classes of two clips, and ``others/CLASS/clip`` with three classes of one."""
    for split, folder, count, shots in (("test", "classes", 2, 2), ("train", "others", 3, 1)):
        for name in sorted(path.name for path in (frame_folders / split).iterdir())[:count]:
            for clip in range(shots):
                shutil.copytree(frame_folders / split / name / str(clip), tmp_path / folder / name / str(clip))
    return tmp_path


def test_negatives_are_enrolled_added_and_used(run, enroll, clips, capsys):
    path = clips / "g.safetensors"
    assert enroll(clips / "classes")[0] == 0
    without = load_gallery(path)
    code, printed = enroll("--negatives", clips / "others", "--add")
    gallery = load_gallery(path)
    assert code == 0 and "negatives: 3 clips of 3 classes" in printed.out
    assert "log odds to negatives below" in printed.out
    assert gallery.rejection.score == "log odds to negatives" and gallery.n_way == 2
    torch.testing.assert_close(gallery.states.tensors(), without.states.tensors(), rtol=0, atol=0)
    clip = clips / "classes" / gallery.class_names[0] / "0"
    assert main(["recognize", str(run), str(path), str(clip), "--json", "--quiet"]) == 0
    [answer] = json.loads(capsys.readouterr().out)["videos"]
    assert answer["best"] == gallery.class_names[0] and 0 < answer["probability"] < 1
    assert (answer["recognized"] is not None) == (answer["score"] >= gallery.rejection.threshold)


def test_unusable_negatives_are_one_message(enroll, clips):
    (clips / "empty").mkdir()
    for folder, message in (
        (clips / "empty", "There are no negatives."),
        (clips / "missing", "There are no negatives."),
        (clips / "classes", "Negatives are enrolled as an action."),
    ):
        code, printed = enroll(clips / "classes", "--negatives", folder)
        assert code == 2 and message in printed.err and "what to do" in printed.err
        assert not (clips / "g.safetensors").exists()
    code, printed = enroll("--name", "red disc", "--negatives", clips / "others")
    assert code == 2 and "with text takes no negatives" in printed.err


def test_one_class_of_one_clip_and_a_folder_of_clips_as_negatives(enroll, clips):
    [name, _] = sorted(path.name for path in (clips / "classes").iterdir())
    (clips / "flat").mkdir()
    for number, folder in enumerate(sorted((clips / "others").iterdir())):
        shutil.copytree(folder / "0", clips / "flat" / f"clip{number}")
    code, printed = enroll(clips / "classes" / name / "0", "--class-name", name, "--negatives", clips / "flat")
    gallery = load_gallery(clips / "g.safetensors")
    assert code == 0 and gallery.shots == (1,) and len(gallery.negatives.class_names) == 3
    assert "a single class leaves no unknown clips" in printed.out
