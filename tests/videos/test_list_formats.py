"""List formats are recognized by their lines, and by the videos on disk if several formats fit."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmgal.errors import DmgalError
from dmgal.videos import VideoCatalog
from dmgal.videos.catalog.lists import FORMAT_NAMES, FORMATS, read_lists, split_in

FOUR_PARTS = ("received:", "expected:", "what to do:")


def touch(root: Path, *names: str) -> Path:
    for file in names:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def rows_of(path: Path, text: str | bytes, there: set[str] = frozenset(), format_name: str | None = None) -> list:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(read_lists(path, lambda video: video if video in there else None, format_name))


@pytest.mark.parametrize(
    ("name", "lines", "rows"),
    [
        (
            "train_few_shot.txt",
            ["train0//UCF/ApplyEyeMakeup/v_1.avi", "val12//UCF/Dive/v 2.avi"],
            [("train", "train0", "UCF/ApplyEyeMakeup/v_1.avi"), ("val", "val12", "UCF/Dive/v 2.avi")],
        ),
        (
            "list.txt",
            ["train8/78687", "test0/5"],
            [("train", "train8", "train8/78687"), ("test", "test0", "test0/5")],
        ),
        (
            "testlist07.txt",
            ["brush_hair/April_09_1", "air drumming/x y"],
            [("test", "brush_hair", "brush_hair/April_09_1"), ("test", "air drumming", "air drumming/x y")],
        ),
        ("all.txt", ["a/1", "b/2"], [("", "a", "a/1"), ("", "b", "b/2")]),
        ("all.txt", ["val/a/1", "test/b/2"], [("val", "a", "val/a/1"), ("test", "b", "test/b/2")]),
        (
            "val.txt",
            ["run/v_1 164 0", "run/v_2\t90\t0", "dive deep/v_3, 12, 7"],
            [("val", "run", "run/v_1"), ("val", "run", "run/v_2"), ("val", "dive deep", "dive deep/v_3")],
        ),
        ("train.lst", ["v_1 0", "v_2 1"], [("train", "train0", "v_1"), ("train", "train1", "v_2")]),
        ("all.lst", ["x/v_1 0", "x/v_2 1"], [("", "class0", "x/v_1"), ("", "class1", "x/v_2")]),
    ],
)
def test_format_is_detected(tmp_path, name, lines, rows):
    assert rows_of(tmp_path / name, "\n".join(lines) + "\n") == rows


def test_line_ends_byte_order_marks_and_empty_lines(tmp_path):
    expected = [("train", "train1", "train1/2"), ("train", "train1", "train1/3")]
    for text in (
        b"train1/2\r\ntrain1/3\r\n",
        b"\xef\xbb\xbftrain1/2\n\n  \ntrain1/3",
        b"train1\\2\r\n\r\ntrain1\\3  \r\n",
    ):
        assert rows_of(tmp_path / "list.txt", text) == expected
    (tmp_path / "list.txt.gz").write_bytes(gzip.compress(b"train1/2\ntrain1/3\n"))
    assert list(read_lists(tmp_path / "list.txt.gz", lambda video: None)) == expected


# any names without slashes, line ends or a number at the end
WORD = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters="/\\\ufeff\x85"), min_size=1, max_size=9
)
NAME = st.lists(WORD, min_size=1, max_size=3).map(" ".join).map(lambda name: f"n{name}e")


@given(
    st.sampled_from(FORMAT_NAMES),
    st.lists(
        st.tuples(st.sampled_from(["train", "val", "test"]), st.integers(0, 99), NAME, NAME), min_size=1, max_size=6
    ),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_written_lists_read_back_in_every_format(tmp_path_factory, format_name, entries, line_end):
    lines, expected = [], []
    for split, label, name, video in entries:
        match format_name:
            case "train0//path.avi":
                lines.append(f"{split}{label}//{name}/{video}")
                expected.append((split, f"{split}{label}", f"{name}/{video}"))
            case "train8/78687":
                lines.append(f"{split}{label}/{video}")
                expected.append((split, f"{split}{label}", f"{split}{label}/{video}"))
            case "path n_frames label":
                lines.append(f"{video} 250 {label}")
                expected.append(("", f"class{label}", video))
            case "path label":
                lines.append(f"{video} {label}")
                expected.append(("", f"class{label}", video))
            case "class/video":
                lines.append(f"{name}/{video}")
                expected.append(("", name, f"{name}/{video}"))
    path = tmp_path_factory.getbasetemp() / "any.list"
    assert rows_of(path, line_end.join(lines)) == expected


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=5))
def test_any_text_gives_rows_or_one_clear_error(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "garbage.txt"
    try:
        rows = rows_of(path, "\n".join(lines))
    except DmgalError as error:
        assert all(part in str(error) for part in FOUR_PARTS)
    else:
        assert all(name and video for _, name, video in rows)


def test_existing_videos_decide_between_fitting_formats(tmp_path):
    line = "brush hair/clip 12 3\n"
    assert rows_of(tmp_path / "l.txt", line, {"brush hair/clip"}) == [("", "brush hair", "brush hair/clip")]
    assert rows_of(tmp_path / "l.txt", line, {"brush hair/clip 12"}) == [("", "brush hair", "brush hair/clip 12")]
    assert rows_of(tmp_path / "l.txt", line, {"brush hair/clip 12 3"}) == [("", "brush hair", "brush hair/clip 12 3")]
    assert rows_of(tmp_path / "l.txt", line) == [("", "brush hair", "brush hair/clip")]


def test_ambiguous_format_is_an_error_unless_given(tmp_path):
    line, there = "a/clip 12 3\n", {"a/clip", "a/clip 12 3"}
    with pytest.raises(
        DmgalError, match=r"ambiguous(.|\n)*path n_frames label \| class/video(.|\n)*--data.list-format"
    ):
        rows_of(tmp_path / "l.txt", line, there)
    assert rows_of(tmp_path / "l.txt", line, there, "class/video") == [("", "a", "a/clip 12 3")]
    assert rows_of(tmp_path / "l.txt", line, there, "path n_frames label") == [("", "a", "a/clip")]


def test_lines_of_no_format_are_an_error(tmp_path):
    with pytest.raises(
        DmgalError, match=r"Line 3 of .*l.txt fits no list format(.|\n)*nothing here(.|\n)*train8/78687"
    ):
        rows_of(tmp_path / "l.txt", "train8/1\n\nnothing here\n")
    with pytest.raises(DmgalError, match=r"Line 1(.|\n)*all of one format: class/video\n"):
        rows_of(tmp_path / "l.txt", "nothing\n", format_name="class/video")
    with pytest.raises(DmgalError, match=r"The list .*absent.* cannot be read"):
        list(read_lists(tmp_path / "absent.txt", lambda video: None))
    (tmp_path / "torn.txt.gz").write_bytes(gzip.compress(b"train8/1\n" * 100)[:-9])
    with pytest.raises(DmgalError, match=r"The list .*torn.* cannot be read"):
        list(read_lists(tmp_path / "torn.txt.gz", lambda video: None))


def test_every_format_is_its_own_example():
    for entry in FORMATS:
        example = entry.name.replace("n_frames", "250").replace("label", "3")
        assert next(other for other in FORMATS if other.pattern.fullmatch(example)) is entry


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(("trainlist07.txt", "train"), ("val_few_shot.txt", "val"), ("ucf101_test_1.txt", "test")),
        *(("validation.csv", "val"), ("traintest.txt", "train"), ("TestList.txt", "test")),
        *(("test_and_train.txt", ""), ("list.txt", ""), ("contest.txt", "")),
    ],
)
def test_splits_in_names(name, split):
    assert split_in(name) == split


def test_a_folder_of_lists_is_a_catalog(tmp_path):
    root = touch(tmp_path / "videos", "a/1.avi", "a/2.avi", "b/3.avi", "c/4/1.jpg")
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "trainlist.txt").write_text("/home/author/a/1.avi 0\n/home/author/a/2.avi 0\n")
    (lists / "vallist.txt").write_text("b/3\n")
    (lists / "testlist.txt").write_text("c/4 10 0\n")
    catalog = VideoCatalog.from_split(lists, root)
    assert catalog.videos == ("a/1.avi", "a/2.avi", "b/3.avi", "c/4")
    assert catalog.class_names == ("a", "b", "c") and catalog.class_splits == ("train", "val", "test")
    catalog.to_csv(tmp_path / "split.csv")
    again = VideoCatalog.from_split(tmp_path / "split.csv", root)
    assert again.videos == catalog.videos and again.class_names == catalog.class_names
    (lists / "trainlist02.txt").write_text("a/1 0\n")
    with pytest.raises(DmgalError, match=r"which lists(.|\n)*: trainlist.txt, trainlist02.txt\n"):
        VideoCatalog.from_split(lists, root)
    with pytest.raises(DmgalError, match=r"which lists(.|\n)*received: none"):
        VideoCatalog.from_split(root / "c", root)


def test_lists_without_splits_and_missing_videos(tmp_path):
    root = touch(tmp_path / "videos", "a/1.avi", "b/2.avi")
    listing = tmp_path / "all.txt"
    listing.write_text("a/1\nb/2\nb/3\n")
    with pytest.raises(DmgalError, match=r"1 of 3 not found(.|\n)*b/3"):
        VideoCatalog.from_split(listing, root)
    missing = []
    catalog = VideoCatalog.from_split(listing, root, on_missing=lambda *row: missing.append(row))
    assert catalog.class_splits is None and catalog.videos == ("a/1.avi", "b/2.avi")
    assert missing == [("", "b", "b/3")]
    listing.write_text("a/1\na/1\n")
    with pytest.raises(DmgalError, match=r"listed more than once(.|\n)*1 repeated: a/1.avi"):
        VideoCatalog.from_split(listing, root)
    with pytest.raises(DmgalError, match=r"The split file .* cannot be read"):
        VideoCatalog.from_split(tmp_path / "absent.txt", root)


def test_a_pair_of_labels_is_not_read_as_a_number_of_frames(tmp_path):
    root = touch(tmp_path / "videos", "a/1.avi", "a/2.avi")
    (tmp_path / "l.txt").write_text("a/1.avi 0 1\na/2.avi 3 0\n")
    with pytest.raises(DmgalError, match=r"2 of 2 not found in .*: a/1.avi 0"):
        VideoCatalog.from_split(tmp_path / "l.txt", root)
    (tmp_path / "l.txt").write_text("a/1.avi 10 1\na/2.avi 3 0\n")
    assert VideoCatalog.from_split(tmp_path / "l.txt", root).videos == ("a/1.avi", "a/2.avi")
