"""Names that a list spells: the exact name wins, and one video or class under two spellings is refused."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from dmgal.errors import DmgalError
from dmgal.videos import VideoCatalog
from dmgal.videos.catalog.files import VideoFinder, same_files

COMPOSED = "saut\u00e9"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def catalog_of(root: Path, *lines: str, name: str = "split.csv") -> VideoCatalog:
    head = ["split,class_name,video"] if name.endswith(".csv") else []
    (root.parent / name).write_text("\n".join([*head, *lines, ""]), encoding="utf-8")
    return VideoCatalog.from_split(root.parent / name, root)


@pytest.mark.parametrize("find", ["find", "find_below"])
def test_exact_name_wins_over_a_longer_one(tmp_path, find):
    names = ("x.mp4", "x.mp4.mp4", "y.mp4", "y.mp4.webm", "z.avi", "f.zip", "f/1.jpg", "v.mp4/1.jpg", "v.mp4.zip", "n")
    touch(tmp_path / "a", *names, "n.mp4", "w.MP4.mkv")
    found = {"x.mp4": "x.mp4", "x": "x.mp4", "x.mp4.mp4": "x.mp4.mp4", "y.mp4": "y.mp4", "y": "y.mp4", "z": "z.avi"}
    found |= {"f": "f", "f.zip": "f.zip", "v.mp4": "v.mp4", "n": "n", "n.mp4": "n.mp4", "w.MP4": "w.MP4.mkv"}
    search = getattr(VideoFinder(tmp_path), find)
    assert {name: search(f"a/{name}") for name in found} == {name: f"a/{path}" for name, path in found.items()}
    assert search("a/y.webm") is None and search("a/w") is None


def test_exact_name_in_another_folder_wins_over_a_longer_one(tmp_path):
    finder = VideoFinder(touch(tmp_path, "a/x.mp4.webm", "x.mp4", "a/8.avi", "8/1.jpg"))
    assert finder.find_below("/data/a/x.mp4") == "x.mp4" and finder.find("a/x.mp4") == "a/x.mp4.webm"
    assert finder.find_below("/data/a/8") == "a/8.avi"


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("a.csv", ["train,jump,jump\\1.mp4", "train,run,run\\1"]),
        ("b.csv", ["train, jump, jump/1.mp4 ", " train, run, run/1.mp4"]),
        ("c.txt", ["C:/d\\jump\\1.mp4 0", "C:/d\\run\\1.mp4 1"]),
        ("d.txt", ["jump\\1.mp4 0", "run\\1.mp4 1"]),
        ("e.txt", ["/home/x/jump/1 0", "/home/x/run/1 1"]),
    ],
)
def test_lists_of_other_programs_are_read(tmp_path, name, lines):
    catalog = catalog_of(touch(tmp_path / "data", "jump/1.mp4", "run/1.mp4"), *lines, name=name)
    assert catalog.videos == ("jump/1.mp4", "run/1.mp4") and catalog.class_names == ("jump", "run")


def test_exact_name_with_a_backslash_or_blank_wins(tmp_path):
    touch(tmp_path / "data", "a\\1.mp4", "a/1.mp4", " b/2.mp4", "b/2.mp4")
    assert catalog_of(tmp_path / "data", "train,x,a\\1.mp4", "train,x, b/2.mp4").videos == ("a\\1.mp4", " b/2.mp4")


@pytest.mark.parametrize(
    "other",
    ["./a/1.mp4", "a//1.mp4", "a/../a/1.mp4", "{root}/a/1.mp4", "a/link.mp4", "linked/1", "a/hard.mp4", "a/./1"],
)
@pytest.mark.parametrize("row", ["train,x", "test,y"])
def test_video_under_two_names_is_refused(tmp_path, other, row):
    root = touch(tmp_path / "data", "a/1.mp4", "a/2.mp4")
    os.symlink("1.mp4", root / "a" / "link.mp4")
    os.symlink("a", root / "linked")
    os.link(root / "a" / "1.mp4", root / "a" / "hard.mp4")
    with pytest.raises(DmgalError, match=r"under two names.\n.*1 repeated: a/1.mp4 is the same file as .*\.mp4\n"):
        catalog_of(root, "train,x,a/1.mp4", f"{row},{other.format(root=root)}", "train,x,a/2.mp4")


def test_linked_class_and_frame_folders_are_refused(tmp_path):
    touch(tmp_path / "one", "train/a/1.mp4", "test/c/1.mp4")
    os.symlink("../train/a", tmp_path / "one" / "test" / "b")
    touch(tmp_path / "two", "a/clip/1.jpg", "b/2.mp4")
    os.symlink("../a/clip", tmp_path / "two" / "b" / "clip")
    for root, message in (("one", "train/a/1.mp4 is the same file as test/b/1.mp4"), ("two", "a/clip is .* b/clip")):
        with pytest.raises(DmgalError, match=message):
            VideoCatalog.from_folders(tmp_path / root)


def test_file_numbers_that_are_equal_by_chance_do_not_count(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.mp4", "a/2.mp4")
    os.symlink("nothing", tmp_path / "a" / "3.mp4")
    monkeypatch.setattr("dmgal.videos.catalog.files._file_number", lambda entry: 7)
    assert same_files(tmp_path, ["a/1.mp4", "a/2.mp4", "a/3.mp4", "none/4.mp4"]) == []
    assert same_files(tmp_path, ["a/1.mp4", "./a/1.mp4"]) == [("a/1.mp4", "./a/1.mp4")]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (COMPOSED, DECOMPOSED),
        ("jump", "jump "),
        (" jump", "jump"),
        ("Jump", "jump"),
        ("long jump", "long  jump"),
        ("long jump", "long\u00a0jump"),
        ("jump", "ju\u200bmp"),
        ("Stra\u00dfe", "STRASSE"),
    ],
)
def test_class_under_two_spellings_is_refused(tmp_path, first, second):
    root = touch(tmp_path / "data", "a/1.mp4", "a/2.mp4")
    for split in ("train", "test"):
        with pytest.raises(DmgalError, match="under two spellings") as caught:
            catalog_of(root, f"train,{first},a/1.mp4", f"{split},{second},a/2.mp4")
        received = caught.value.received
        assert received.endswith(f"({split})") and received.isprintable() and len(set(received.split(" and "))) == 2
    folders = touch(tmp_path / "folders", f"train/{first}/1.mp4", f"test/{second}/1.mp4")
    with pytest.raises(DmgalError, match="under two spellings"):
        VideoCatalog.from_folders(folders)


def test_outer_blanks_of_class_names_are_removed(tmp_path):
    root = touch(tmp_path / "data", "a/1.mp4", "b/2.mp4")
    (tmp_path / "s.csv").write_text("split,class_name,video,reversal\ntrain, up,a/1,down\ntrain, down,b/2, up\n")
    catalog = VideoCatalog.from_csv(tmp_path / "s.csv", root)
    assert catalog.class_names == ("up", "down") and catalog.reversal_pairs == ((0, 1),)


def test_split_folders_with_capitals(tmp_path):
    catalog = VideoCatalog.from_folders(touch(tmp_path / "a", "Train/x/1.mp4", "VAL/y/1.mp4", "Test/z/1.mp4"))
    assert catalog.class_splits == ("train", "val", "test")
    assert catalog.videos == ("Train/x/1.mp4", "VAL/y/1.mp4", "Test/z/1.mp4")
    catalog = VideoCatalog.from_folders(touch(tmp_path / "b", "Test/1.mp4", "Car/1.mp4"))
    assert catalog.class_splits is None and np.array_equal(catalog.labels, [0, 1])
    with pytest.raises(DmgalError, match=r"in two splits(.|\n)*one of train, val and test"):
        VideoCatalog.from_folders(touch(tmp_path / "c", "Train/x/1.mp4", "Test/x/1.mp4"))
