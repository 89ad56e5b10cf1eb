"""Catalogs from split files and from class folders, and the errors for unusable ones."""

from __future__ import annotations

import csv
import gzip
import os
import pickle
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from dmgal.errors import DmgalError
from dmgal.videos import VideoCatalog

FOUR_PARTS = ("received:", "expected:", "what to do:")


def touch(root: Path, *names: str) -> Path:
    for file in names:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def split_file(path: Path, *lines: str) -> Path:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    return path


def refused(match: str):
    return pytest.raises(DmgalError, match=match)


def test_class_folders_without_a_split(tmp_path):
    touch(tmp_path, *(f"class{c}/v{v}.mp4" for c in (10, 9, 1) for v in (10, 2)), "class1/notes.txt", "readme.md")
    touch(tmp_path, "class9/frames/1.JPG", "class9/no_frames/readme.txt", ".hidden/a.mp4", "class1/.hidden.mp4")
    catalog = VideoCatalog.from_folders(tmp_path)
    assert catalog.class_names == ("class1", "class9", "class10")
    assert catalog.videos == (
        "class1/v2.mp4",
        "class1/v10.mp4",
        "class9/frames",
        "class9/v2.mp4",
        "class9/v10.mp4",
        "class10/v2.mp4",
        "class10/v10.mp4",
    )
    assert catalog.labels.tolist() == [0, 0, 1, 1, 1, 2, 2] and catalog.labels.dtype == np.int64
    assert catalog.class_splits is None and len(catalog) == 7
    assert catalog.path(2) == tmp_path / "class9" / "frames"
    with refused("classes without a split(.|\n)*with_seeded_split"):
        catalog.split("train")
    with refused("without splits"):
        catalog.to_csv(tmp_path / "split.csv")


def test_split_folders(tmp_path):
    touch(tmp_path, "train/a/1.mp4", "train/b/1.mp4", "val/c/1.avi", "test/d/1.webm", "test/e/2.mkv", "test/e/1.mkv")
    catalog = VideoCatalog.from_folders(tmp_path)
    assert catalog.class_names == ("a", "b", "c", "d", "e")
    test = catalog.split("test")
    assert test.class_names == ("d", "e") and test.labels.tolist() == [0, 1, 1]
    assert test.videos == ("test/d/1.webm", "test/e/1.mkv", "test/e/2.mkv")
    assert test.path(1) == tmp_path / "test/e/1.mkv"
    assert test.split("test").class_names == test.class_names
    assert "classes=5" in repr(catalog) and "'test': 2" in repr(catalog) and len(repr(catalog)) < 300
    with refused("no split 'train'(.|\n)*the splits test"):
        test.split("train")


def test_folder_errors(tmp_path):
    with refused("missing(.|\n)*nowhere"):
        VideoCatalog.from_folders(tmp_path / "nowhere")
    (tmp_path / "none").mkdir()
    with refused("has no classes"):
        VideoCatalog.from_folders(tmp_path / "none")
    touch(tmp_path / "empty", "a/1.mp4", "b/1.txt", "c/2.txt")
    with refused("2 without: b, c\n"):
        VideoCatalog.from_folders(tmp_path / "empty")
    touch(tmp_path / "both", "train/a/1.mp4", "extra/1.mp4")
    with refused("Splits and classes cannot be distinguished"):
        VideoCatalog.from_folders(tmp_path / "both")
    touch(tmp_path / "twice", "train/a/1.mp4", "test/a/1.mp4")
    with refused("in two splits.\n.*: a\n"):
        VideoCatalog.from_folders(tmp_path / "twice")


@pytest.mark.parametrize("name", ["split.csv", "split.csv.gz"])
def test_split_files(tmp_path, name):
    root = touch(
        tmp_path / "videos", "deep/one.mp4", "two.WEBM", "two.txt", "frames/1.jpg", "sp ace, it's.mp4", "4.avi"
    )
    path = split_file(
        tmp_path / name,
        "class_index,split,video,class_name",
        "0,train,deep/one,zebra",
        "0,train,two,zebra",
        "1,val,frames,ape",
        '2,test,"sp ace, it\'s.mp4","says ""hi"", then"',
        "",
        "0,train,4.avi,zebra",
    )
    catalog = VideoCatalog.from_csv(path, root)
    assert catalog.videos == ("deep/one.mp4", "two.WEBM", "frames", "sp ace, it's.mp4", "4.avi")
    assert catalog.class_names == ("zebra", "ape", 'says "hi", then')
    assert catalog.labels.tolist() == [0, 0, 1, 2, 0]
    assert catalog.class_splits == ("train", "val", "test")
    assert all(catalog.path(video).exists() for video in range(len(catalog)))
    assert catalog.reversal_pairs == ()


def test_names_with_dots_and_several_extensions(tmp_path):
    root = touch(tmp_path, "v1.2.mp4", "v1.mov", "b.mp4", "b.avi")
    path = split_file(tmp_path / "s.csv", "split,class_name,video", *(f"train,a,{v}" for v in ("v1.2", "v1", "b")))
    assert VideoCatalog.from_csv(path, root).videos == ("v1.2.mp4", "v1.mov", "b.avi")


REVERSALS = [
    "split,class_name,video,reversal",
    "train,up,1,down",
    "train,down,2,up",
    "train,spin,3,spin",
    "test,left,4,right",
    "test,right,5,",
    "test,wave,6,",
    "test,wave,7,",
]


def numbered(tmp_path: Path) -> Path:
    return touch(tmp_path / "videos", *(f"{number}.mp4" for number in range(1, 8)))


def test_split_contains_only_complete_reversal_pairs(tmp_path):
    catalog = VideoCatalog.from_csv(split_file(tmp_path / "s.csv", *REVERSALS), numbered(tmp_path))
    assert catalog.reversal_pairs == ((0, 1), (3, 4))
    test = catalog.split("test")
    assert [tuple(test.class_names[c] for c in pair) for pair in test.reversal_pairs] == [("left", "right")]
    apart = split_file(tmp_path / "apart.csv", REVERSALS[0], "train,up,1,down", "val,down,2,up")
    assert VideoCatalog.from_csv(apart, numbered(tmp_path)).split("train").reversal_pairs == ()


@pytest.mark.parametrize("name", ["written.csv", "written.csv.gz"])
def test_a_written_split_file_reads_back(tmp_path, name):
    root = numbered(tmp_path)
    catalog = VideoCatalog.from_csv(split_file(tmp_path / "s.csv", *REVERSALS), root)
    catalog.to_csv(tmp_path / "new" / name)
    again = VideoCatalog.from_csv(tmp_path / "new" / name, root)
    assert os.listdir(tmp_path / "new") == [name]
    for column in ("videos", "class_names", "class_splits", "reversal_pairs"):
        assert getattr(again, column) == getattr(catalog, column)
    assert np.array_equal(again.labels, catalog.labels)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    catalog = VideoCatalog.from_csv(split_file(tmp_path / "s.csv", *REVERSALS), numbered(tmp_path))
    catalog.to_csv(tmp_path / "new" / "split.csv")
    before = (tmp_path / "new" / "split.csv").read_bytes()
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        catalog.split("test").to_csv(tmp_path / "new" / "split.csv")
    assert os.listdir(tmp_path / "new") == ["split.csv"]
    assert (tmp_path / "new" / "split.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["split,class_name,video"], "has no classes"),
        ([""], "first line with nothing"),
        (["split,name,video", "train,a,1"], "Add the column class_name"),
        (["split,class_name,video", "train,a,1", "dev,a,2"], "Row 3 of(.|\n)*dev,a,2"),
        (["split,class_name,video", "train,a"], "Row 2 of(.|\n)*3 values"),
        (["split,class_name,video", "train,,1"], "Row 2 of"),
        (["split,class_name,video", "train,a,1", "train,b,"], "1 without: b\n"),
        (["split,class_name,video", "train,a,1", "test,a,2"], "in two splits.\n.*: a\n"),
        (
            ["split,class_name,video", *(f"train,a,{n}" for n in range(1, 30))],
            "22 of 29 not found(.|\n)*8, 9.* 17 more",
        ),
        (["split,class_name,video,reversal", "train,a,1,ghost"], "'reversal'(.|\n)*: ghost\n"),
        (["split,class_name,video,reversal", "train,a,1,b", "train,b,2,c", "train,c,3,"], "'reversal'(.|\n)*: b\n"),
    ],
)
def test_split_file_errors(tmp_path, lines, message):
    with refused(message) as caught:
        VideoCatalog.from_csv(split_file(tmp_path / "s.csv", *lines), numbered(tmp_path))
    assert all(part in str(caught.value) for part in FOUR_PARTS)


def test_unreadable_split_files(tmp_path):
    root = numbered(tmp_path)
    (tmp_path / "latin.csv").write_bytes("split,class_name,video\ntrain,Füße,1\n".encode("latin-1"))
    (tmp_path / "plain.csv.gz").write_text("split,class_name,video\ntrain,a,1\n")
    for name in ("absent.csv", "latin.csv", "plain.csv.gz"):
        with refused(f"The split file .*{name} cannot be read"):
            VideoCatalog.from_csv(tmp_path / name, root)
    with refused("folder of the videos is missing"):
        VideoCatalog.from_csv(split_file(tmp_path / "s.csv", *REVERSALS), tmp_path / "nowhere")


def test_seeded_split_is_by_class(tmp_path):
    touch(tmp_path, *(f"class{c}/{v}.mp4" for c in range(25) for v in range(2)))
    catalog = VideoCatalog.from_folders(tmp_path)
    split = catalog.with_seeded_split(7)
    assert [split.class_splits.count(name) for name in ("train", "val", "test")] == [16, 4, 5]
    assert sum(len(split.split(name)) for name in ("train", "val", "test")) == len(catalog)
    assert split.class_splits == catalog.with_seeded_split(7).class_splits
    assert split.class_splits != catalog.with_seeded_split(8).class_splits
    assert catalog.class_splits is None
    halves = catalog.with_seeded_split(0, (0.5, 0, 0.5)).class_splits
    assert halves.count("val") == 0 and abs(halves.count("train") - 12.5) < 1
    with refused("add up to 1"):
        catalog.with_seeded_split(0, (0.5, 0.5, 0.5))


def test_seeded_split_of_too_few_classes(tmp_path):
    touch(tmp_path, *(f"{c}/v.mp4" for c in "abc"))
    with refused("no class left for val"):
        VideoCatalog.from_folders(tmp_path).with_seeded_split(0)


def test_seeded_split_keeps_reversal_pairs_together(tmp_path):
    root = touch(tmp_path, *(f"{c}.mp4" for c in range(20)))
    lines = [f"train,c{c},{c},c{c ^ 1}" for c in range(20)]
    catalog = VideoCatalog.from_csv(split_file(tmp_path / "s.csv", "split,class_name,video,reversal", *lines), root)
    for seed in range(5):
        again = catalog.with_seeded_split(seed)
        assert sum(len(again.split(name).reversal_pairs) for name in ("train", "val", "test")) == 10


def test_bundled_split_files_can_be_read(tmp_path):
    folder = Path(str(files("dmgal.videos.catalog") / "splits"))
    assert len(list(folder.glob("*.csv.gz"))) == 5
    name = "hmdb51.csv.gz"
    with gzip.open(folder / name, "rt") as file:
        touch(tmp_path, *(f"{row['video']}.avi" for row in csv.DictReader(file)))
    catalog = VideoCatalog.from_csv(folder / name, tmp_path)
    assert len(catalog) == 6766
    assert [catalog.class_splits.count(split) for split in ("train", "val", "test")] == [31, 10, 10]


def test_real_frame_folders(test_data):
    catalog = VideoCatalog.from_folders(test_data / "videos" / "ssv2_mini")
    assert len(catalog) == 150
    for name in ("train", "val", "test"):
        part = catalog.split(name)
        assert part.class_names == tuple(f"{name}{c}" for c in range(5))
        assert np.bincount(part.labels).tolist() == [10] * 5
    assert catalog.split("train").videos[0] == "train/train0/197"


def test_split_files_of_spreadsheets_and_windows(tmp_path):
    root = touch(tmp_path / "videos", "a b.mp4", "2.avi", "3.avi")
    expected = ["a b.mp4", "2.avi", "3.avi"]
    rows = [
        ["split", "class_name", "video"],
        ["train", "ä, b", "a b"],
        ["", "", ""],
        ["val", "c", "2"],
        ["test", "d", "3"],
    ]
    for delimiter in ",;\t":
        for line_end in ("\n", "\r\n"):
            for mark in (b"", b"\xef\xbb\xbf"):
                lines = [delimiter.join(f'"{value}"' if "," in value else value for value in row) for row in rows]
                (tmp_path / "s.csv").write_bytes(mark + (line_end.join(lines) + line_end * 2).encode())
                catalog = VideoCatalog.from_csv(tmp_path / "s.csv", root)
                assert catalog.videos == tuple(expected) and catalog.class_names == ("ä, b", "c", "d")


def test_names_that_are_not_utf8_are_preserved(tmp_path):
    raw = os.fsdecode(b"caf\xe9")
    try:
        touch(tmp_path / "videos", f"train/{raw}/{raw}.mp4", "val/b/1.mp4")
    except OSError:
        pytest.skip("this file system holds UTF-8 names only")
    catalog = VideoCatalog.from_folders(tmp_path / "videos")
    assert catalog.class_names == ("caf\\xe9", "b") and catalog.path(0).exists()
    catalog.to_csv(tmp_path / "s.csv")
    again = VideoCatalog.from_csv(tmp_path / "s.csv", tmp_path / "videos")
    assert again.videos == catalog.videos and again.class_names == catalog.class_names and again.path(0).exists()
    print(catalog, again.class_names)  # fails if a name cannot be encoded
    assert pickle.loads(pickle.dumps(catalog)).videos == catalog.videos  # noqa: S301


def test_a_video_listed_twice_is_refused(tmp_path):
    root = numbered(tmp_path)
    for lines in (["train,a,1", "train,a,2", "train,a,1"], ["train,a,1", "val,b,1", "val,b,1.mp4"]):
        path = split_file(tmp_path / "s.csv", "split,class_name,video", *lines)
        with refused(r"more than once(.|\n)*1.mp4\n(.|\n)*support and query"):
            VideoCatalog.from_csv(path, root)


def test_missing_videos_can_be_skipped(tmp_path):
    path = split_file(tmp_path / "s.csv", "split,class_name,video", "train,a,1", "train,a,8", "val,b,9", "val,b,2")
    missing = []
    catalog = VideoCatalog.from_csv(path, numbered(tmp_path), lambda *row: missing.append(row))
    assert catalog.videos == ("1.mp4", "2.mp4") and missing == [("train", "a", "8"), ("val", "b", "9")]
    path = split_file(tmp_path / "s.csv", "split,class_name,video", "train,a,1", "val,b,9")
    with refused("1 without: b\n"):
        VideoCatalog.from_csv(path, numbered(tmp_path), lambda *row: None)


def test_without(tmp_path):
    catalog = VideoCatalog.from_csv(split_file(tmp_path / "s.csv", *REVERSALS), numbered(tmp_path))
    less = catalog.without({"6.mp4", "not there.mp4"})
    assert less.videos == tuple(video for video in catalog.videos if video != "6.mp4")
    assert less.labels.tolist() == [0, 1, 2, 3, 4, 5]
    for column in ("root", "class_names", "class_splits", "reversal_pairs"):
        assert getattr(less, column) == getattr(catalog, column)
    assert less.split("test").videos == ("4.mp4", "5.mp4", "7.mp4")
    with refused(r"left without a video(.|\n)*after leaving out 2 of 7 videos: wave\n"):
        catalog.without(["6.mp4", "7.mp4"])


def test_unlistable_folder_is_an_error(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.mp4", "a/b/1.jpg")
    scandir = os.scandir

    def refuse_b(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse_b)
    with refused(r"The folders of .* cannot be listed(.|\n)*b: Permission denied"):
        VideoCatalog.from_folders(tmp_path)


def test_catalog_from_any_sequence_of_names(tmp_path):
    catalog = VideoCatalog(tmp_path, ("a", "b"), np.array([0, 1]), ("x", "y"), ("train", "val"))
    assert catalog.videos == ("a", "b") and catalog.path(1) == tmp_path / "b" and len(catalog.split("val")) == 1


@pytest.mark.parametrize("below", ["UCF-101", "UCF-101/UCF-101"])
def test_error_suggests_the_root_of_the_classes(tmp_path, below):
    for split in ("", "train/"):
        video = tmp_path / f"{len(split)}" / below / split / "dive" / "1.mp4"
        video.parent.mkdir(parents=True)
        video.touch()
        root = tmp_path / f"{len(split)}"
        with pytest.raises(DmgalError, match=rf"Did you mean the root {re.escape(str(root / below))}\?"):
            VideoCatalog.from_folders(root)
        assert VideoCatalog.from_folders(root / below).videos == (f"{split}dive/1.mp4",)
    (tmp_path / "empty" / "class").mkdir(parents=True)
    with pytest.raises(DmgalError, match="have no video"):
        VideoCatalog.from_folders(tmp_path / "empty")


GROUPED = ("split,class_name,video,person", "test,walk,a/1,ann", "test,walk,a/2,bob", "val,run,b/1, ann ")


def test_groups_of_a_column_follow_their_videos(tmp_path):
    touch(tmp_path, "a/1.mp4", "a/2.mp4", "b/1.mp4")
    path = split_file(tmp_path / "split.csv", *GROUPED)
    catalog = VideoCatalog.from_csv(path, tmp_path, group="person")
    assert catalog.groups == ("ann", "bob", "ann") and VideoCatalog.from_csv(path, tmp_path).groups is None
    assert catalog.split("test").groups == ("ann", "bob") and catalog.without(["a/1.mp4"]).groups == ("bob", "ann")
    catalog.to_csv(tmp_path / "again.csv")
    assert VideoCatalog.from_split(tmp_path / "again.csv", tmp_path, group="group").groups == catalog.groups
    with refused("no column 'persn'(.|\n)*class_name, video, person"):
        VideoCatalog.from_csv(path, tmp_path, group="persn")
    with refused("have no group(.|\n)*1 of 3: a/2.mp4"):
        VideoCatalog.from_csv(
            split_file(path, *(line.replace("bob", "") for line in GROUPED)), tmp_path, group="person"
        )
    with refused("without columns"):
        VideoCatalog.from_split(split_file(tmp_path / "list.txt", "a/1.mp4 0", "b/1.mp4 1"), tmp_path, group="person")


def test_groups_of_a_pattern(tmp_path):
    touch(tmp_path, "walk/ann_walk.mp4", "walk/bob_walk.mp4", "run/ann_run.mp4")
    catalog = VideoCatalog.from_folders(tmp_path)
    assert catalog.with_groups("([^/_]+)_[^/]*$").groups == ("ann", "ann", "bob")
    assert catalog.with_groups("^(.)[^/]*/(.)").groups == ("r/a", "w/a", "w/b")
    for pattern, problem in (("ann", "no parentheses"), ("(ann", "not valid"), ("(bob)", "2 of 3: run/ann_run.mp4")):
        with refused(problem):
            catalog.with_groups(pattern)
