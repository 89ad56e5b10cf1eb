"""Galleries through the command line: new, added to, taken from, refused."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from dmgal import files as exclusive
from dmgal.cli import main
from dmgal.episodes.gallery import gallery_file
from dmgal.episodes.gallery.gallery_file import load_gallery
from dmgal.recipes.run import action_recognizer as front_door

CLIPS = 4


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, save_run: Callable[..., Path]) -> Path:
    """A run with a Cmga."""
    return save_run(tmp_path_factory.mktemp("runs") / "run", "dmgal_adapter")


@pytest.fixture
def enroll(run_folder, tmp_path, capsys):
    """Run the command into ``tmp_path/g.safetensors``, and return the exit code and the output."""

    def run(*words, run=run_folder):
        capsys.readouterr()
        code = main(["enroll", str(run), *map(str, words), "--out", str(tmp_path / "g.safetensors"), "--quiet"])
        return code, capsys.readouterr()

    return run


def copied(frame_folders, folder, clips):
    """``folder/class/clip`` with the first ``clips`` of each of the four test classes."""
    for name in sorted(path.name for path in (frame_folders / "test").iterdir()):
        for clip in range(clips):
            shutil.copytree(frame_folders / "test" / name / str(clip), folder / name / str(clip))
    return folder


def states_by_clip(gallery):
    names = [(gallery.class_names[label], clip) for label, clip in zip(gallery.labels, gallery.clips, strict=True)]
    return {name: gallery.states.select(slice(place, place + 1)) for place, name in enumerate(names)}


def test_class_folders_are_enrolled_and_printed(enroll, frame_folders, tmp_path):
    code, printed = enroll(copied(frame_folders, tmp_path / "clips", 2))
    gallery = load_gallery(tmp_path / "g.safetensors")
    assert code == 0 and printed.err == ""
    assert gallery.n_way == 4 and gallery.shots == (2, 2, 2, 2) and len(gallery.view_clips) == 0
    assert "4 classes, 8 clips" in printed.out and all(name in printed.out for name in gallery.class_names)
    assert "from 8 held-out clips" in printed.out and "next: dmgal recognize" in printed.out
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]


def test_single_clips_get_a_threshold_from_augmented_views(enroll, frame_folders, tmp_path):
    code, printed = enroll(copied(frame_folders, tmp_path / "clips", 1), "--views", "3")
    gallery = load_gallery(tmp_path / "g.safetensors")
    assert code == 0 and "from 12 augmented views" in printed.out
    assert gallery.rejection.source == "augmented views" and gallery.view_clips.tolist() == sorted([0, 1, 2, 3] * 3)


def test_adding_and_removing_keep_other_states_bit_identical(enroll, frame_folders, tmp_path):
    test, names = frame_folders / "test", sorted(path.name for path in (frame_folders / "test").iterdir())
    assert enroll(copied(frame_folders, tmp_path / "clips", 1), "--shortlist", "2")[0] == 0
    before = states_by_clip(load_gallery(tmp_path / "g.safetensors"))
    code, printed = enroll(test / names[0] / "2", "--class-name", "new one", "--add")
    assert code == 0 and "5 classes, 5 clips" in printed.out
    (tmp_path / "more").mkdir()
    shutil.copytree(test / names[1] / "3", tmp_path / "more" / "other")
    assert enroll(tmp_path / "more", "--class-name", names[1], "--add")[0] == 0
    assert enroll("--remove", names[0], "--remove", names[2])[0] == 0
    gallery = load_gallery(tmp_path / "g.safetensors")
    assert set(gallery.class_names) == {names[1], names[3], "new one"} and sorted(gallery.shots) == [1, 1, 2]
    assert gallery.rejection.shortlist == 2
    now = states_by_clip(gallery)
    stay = [key for key in before if key[0] in (names[1], names[3])]
    assert len(stay) == 2
    for key in stay:
        torch.testing.assert_close(now[key].tensors(), before[key].tensors(), rtol=0, atol=0)


def test_concurrent_additions_are_both_saved(enroll, frame_folders, tmp_path, monkeypatch):
    """The second comes while the first encodes its clips."""
    clips, waits = frame_folders / "test", threading.Event()
    first, *others = sorted(path.name for path in clips.iterdir())[:3]
    assert enroll(clips / first / "0", "--class-name", first)[0] == 0
    make_gallery, exclusively = front_door.make_gallery, exclusive.exclusively
    added = [clips / others[1] / "0", "--class-name", others[1], "--add"]
    second = threading.Thread(target=enroll, args=added)

    def meanwhile(*given):
        if not second.ident:
            second.start()
            while second.is_alive() and not waits.is_set():
                time.sleep(0.01)
        return make_gallery(*given)

    monkeypatch.setattr(front_door, "make_gallery", meanwhile)
    monkeypatch.setattr(gallery_file, "exclusively", lambda path, _: exclusively(path, waits.set), raising=False)
    assert enroll(clips / others[0] / "0", "--class-name", others[0], "--add")[0] == 0
    second.join()
    assert set(load_gallery(tmp_path / "g.safetensors").class_names) == {first, *others}


def test_names_with_accents_and_invalid_utf8_are_accepted(enroll, frame_folders, tmp_path):
    folder = os.fsencode(tmp_path / "clips")
    try:
        os.makedirs(folder + b"/caf\xe9")
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    first, second = sorted((frame_folders / "test").iterdir())[:2]
    shutil.copytree(os.fsencode(first / "0"), folder + b"/caf\xe9/clip\xe9")
    shutil.copytree(second / "0", tmp_path / "clips" / "läuft 走" / "0")
    code, printed = enroll(tmp_path / "clips")
    assert code == 0 and "caf\\xe9" in printed.out and "läuft 走" in printed.out
    gallery = load_gallery(tmp_path / "g.safetensors")
    assert set(gallery.class_names) == {"caf\\xe9", "läuft 走"} and "caf\udce9/clip\udce9" in gallery.clips
    assert enroll("--remove", "caf\udce9")[0] == 0  # as a terminal would give it


def broken(folder):
    folder.mkdir(parents=True)
    (folder / "broken.mp4").write_text("hello")


def refusals(tmp_path, frame_folders):
    """Cases of input and message."""
    clips = copied(frame_folders, tmp_path / "two", 1)
    one = next(clips.iterdir())
    (tmp_path / "empty").mkdir()
    shutil.copytree(clips, tmp_path / "hole")
    (tmp_path / "hole" / "no clips").mkdir()
    shutil.copytree(clips, tmp_path / "bad")
    broken(tmp_path / "bad" / "only broken")
    shutil.copytree(clips, tmp_path / "twice")
    shutil.copytree(one / "0", tmp_path / "twice" / "again" / "0")
    shutil.copytree(one, tmp_path / "flat")
    return [
        ([tmp_path / "missing"], "missing"),
        ([tmp_path / "empty"], "has no classes"),
        ([tmp_path / "hole"], "no clips"),
        ([tmp_path / "bad"], "broken.mp4"),
        ([tmp_path / "bad", "--on-bad-video", "skip"], "only broken"),
        ([tmp_path / "twice"], "enrolled twice"),
        ([tmp_path / "empty", "--class-name", "x"], "nothing to enroll"),
        ([tmp_path / "flat", "--class-name", " "], "nothing to enroll"),
        ([], "nothing to do"),
        ([clips, "--add"], "no such gallery"),
        (["--remove", "x"], "no such gallery"),
        ([clips, "--shortlist", "-1"], "at least 1"),
    ]


def test_impossible_enrollment_raises_with_a_remedy(enroll, frame_folders, tmp_path):
    for words, said in refusals(tmp_path, frame_folders):
        code, printed = enroll(*words)
        assert code == 2, words
        assert said in printed.err and printed.err.count("\n  ") >= 3 and "Traceback" not in printed.err, printed.err
        assert not (tmp_path / "g.safetensors").exists()


def test_bad_clip_is_skipped_on_request(enroll, frame_folders, tmp_path):
    clips = copied(frame_folders, tmp_path / "clips", 1)
    (next(clips.iterdir()) / "broken.mp4").write_text("hello")
    code, printed = enroll(clips, "--on-bad-video", "skip")
    assert code == 0 and "broken.mp4" in printed.err and "4 classes, 4 clips" in printed.out


def test_existing_gallery_and_other_model_raise(enroll, frame_folders, tmp_path, run_folder):
    clips = copied(frame_folders, tmp_path / "clips", 1)
    assert enroll(clips)[0] == 0
    before = (tmp_path / "g.safetensors").read_bytes()
    code, printed = enroll(clips)
    assert code == 2 and "--add" in printed.err
    code, printed = enroll(clips, "--add")
    assert code == 2 and "enrolled twice" in printed.err
    other = tmp_path / "other run"
    shutil.copytree(run_folder, other)
    recipe = (other / "recipe.yaml").read_text()
    (other / "recipe.yaml").write_text(recipe.replace("test_resize: 1.0", "test_resize: 1.25"))
    code, printed = enroll("--remove", "x", run=other)
    assert code == 2 and "resize=1.25" in printed.err and "resize=1.0" in printed.err
    assert "weights" not in printed.err
    assert (tmp_path / "g.safetensors").read_bytes() == before


def test_frame_folder_is_one_clip(enroll, tmp_path, frame_folders):
    folder = tmp_path / "clip"
    folder.mkdir()
    for place in range(8):
        Image.new("RGB", (48, 48), (place * 30, 0, 0)).save(folder / f"{place}.png")
    code, printed = enroll(folder, "--class-name", "red")
    assert code == 0 and "1 class, 1 clip," in printed.out
    assert "a single class leaves no unknown clips" in printed.out


def test_annotated_segments_have_the_states_of_cut_clips(enroll, frame_folders, tmp_path):
    clips, tracks = copied(frame_folders, tmp_path / "clips", 2), []
    (tmp_path / "film").mkdir()
    for clip in sorted(clips.glob("*/*"), key=lambda clip: clip.name):
        start = len(list((tmp_path / "film").iterdir()))
        for place, frame in enumerate(sorted(clip.iterdir())):
            shutil.copy(frame, tmp_path / "film" / f"{start + place}{frame.suffix}")
        end = start + len(list(clip.iterdir()))
        boxes = f'<box frame="{start}" outside="0"/><box frame="{end}" outside="1"/>'
        tracks.append(f'<track label="{clip.parent.name}">{boxes}</track>')
    meta = "<meta><task><source>film</source></task></meta>"
    (tmp_path / "film.xml").write_text(f"<annotations>{meta}{''.join(tracks)}</annotations>")
    assert enroll(clips)[0] == 0
    cut = load_gallery(tmp_path / "g.safetensors")
    (tmp_path / "g.safetensors").unlink()
    code, printed = enroll(tmp_path / "film.xml")
    assert code == 0 and "4 classes, 8 clips" in printed.out
    annotated = load_gallery(tmp_path / "g.safetensors")
    for name in cut.class_names:
        of_cut, of_film = (one.states.select(one.labels == one.class_names.index(name)) for one in (cut, annotated))
        for key, tensor in of_cut.tensors().items():
            assert torch.equal(tensor, of_film.tensors()[key])
    code, printed = enroll(tmp_path / "film.xml", "--add")
    assert code == 2 and "film#frames=" in printed.err
