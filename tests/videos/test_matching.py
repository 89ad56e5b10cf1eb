"""Listed videos are found in any folder layout, and other videos do not match."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmgal.videos.catalog.files import subfolders, videos_in
from dmgal.videos.catalog.matching import match_videos, videos_below


def touch(root: Path, *names: str) -> Path:
    for file in names:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege")
def test_a_link_to_itself_is_no_folder(tmp_path):
    touch(tmp_path, "a.mp4", "class/b.mp4")
    (tmp_path / "loop").symlink_to("loop")
    assert videos_in(tmp_path) == ["a.mp4"] and subfolders(tmp_path) == ["class"]
    assert matched(tmp_path, "a", "b") == ["a.mp4", "class/b.mp4"]


def matched(root: Path, *listed: str | tuple[str, str]) -> list[str | None]:
    return match_videos([entry if isinstance(entry, tuple) else ("class", entry) for entry in listed], root).paths


@pytest.mark.parametrize(
    ("listed", "there"),
    [
        ("10057", "10057.webm"),
        ("10057", "deep/down/10057.mp4"),
        ("10057", "20bn-something-something-v2/10057.webm"),
        ("10057", "train0/10057/00001.jpg"),
        ("v_Dive_g01_c01", "Dive/v_Dive_g01_c01.AVI"),
        ("v_HandstandPushups_g01_c01", "HandstandPushups/v_HandStandPushups_g01_c01.avi"),
        ("v_Dive_g01_c01", "jpegs/v_Dive_g01_c01.avi/frame1.jpg"),
        ("a_b c", "A b_c.mp4"),
        ("clip!_a", "clip_a.mp4"),
        ("Füße_1", "Fu\u0308ße 1.mp4"),
        ("-VtLx-mcPds_000012_000022", "air_drumming/-VtLx-mcPds_000012_000022.mp4"),
        ("-VtLx-mcPds_000012_000022", "-VtLx-mcPds.mkv"),
        ("-VtLx-mcPds_000012_000022", "-VtLx-mcPds_12_22.mp4.webm"),
        ("-VtLx-mcPds", "-VtLx-mcPds_000012_000022.mp4"),
        ("123", "000123.webm"),
        ("000123", "123/00001.jpg"),
        ("v_Dive_g01_c01", "vDive-g01c01.avi"),
    ],
)
def test_equivalent_spellings_match(tmp_path, listed, there):
    touch(tmp_path, there, "other.mp4", "notes/readme.txt")
    found = there if not there.endswith(".jpg") else os.path.dirname(there)
    assert matched(tmp_path, listed) == [found]


@pytest.mark.parametrize(
    ("listed", "there"),
    [
        ("10057", "100571.webm"),
        ("110351", "11035 (1).webm"),  # a browser's second copy of 11035
        ("110351", "11035_1.webm"),
        ("110351", "110-351.webm"),
        ("clip_1", "clip (1).mp4"),
        ("clip1", "clip (1).mp4"),
        ("x1_12", "x11-2.mp4"),
        ("10057", "10057.txt"),
        ("10057", "10057/clip.txt"),
        ("10057", ".10057.webm"),
        ("10057", ".hidden/10057.webm"),
        ("-VtLx-mcPds_000012_000022", "-VtLx-mcPds_000030_000040.mp4"),
        ("-VtLx-mcPds_000012_000022", "-vtlx-mcpds.mp4"),
        ("---", "___.mp4.txt"),
    ],
)
def test_other_names_do_not_match(tmp_path, listed, there):
    assert matched(touch(tmp_path, there), listed) == [None]


def test_spelling_of_two_listed_videos_matches_neither(tmp_path):
    touch(tmp_path, "ab_c.mp4", "a-bc.mp4", "abc.mp4")
    assert matched(tmp_path, "ab_c", "a-bc") == ["ab_c.mp4", "a-bc.mp4"]
    (tmp_path / "a-bc.mp4").unlink()
    assert matched(tmp_path, "ab_c", "a-bc") == ["ab_c.mp4", None]
    films = "-VtLx-mcPds_000012_000022", "-VtLx-mcPds_000040_000050"
    touch(tmp_path, "-VtLx-mcPds.mp4")
    assert matched(tmp_path, *films) == [None, None]
    assert matched(tmp_path, films[0]) == ["-VtLx-mcPds.mp4"]


def test_leading_zeros_of_numbers(tmp_path):
    touch(tmp_path, "0012.webm", "12.webm", "7.webm")
    assert matched(tmp_path, "12", "0012", "07") == ["12.webm", "0012.webm", "7.webm"]
    assert matched(tmp_path, "007", "07") == [None, None], "ambiguous"


def test_best_of_several_files_wins(tmp_path):
    touch(tmp_path, "copy/x.mp4", "Brush Hair/x.mp4", "brush hair/frames/x/1.jpg", "brush hair/X.avi")
    matches = match_videos([("brush_hair", "x")], tmp_path)
    assert matches.paths == ["Brush Hair/x.mp4"] and matches.num_several == 1
    (tmp_path / "Brush Hair/x.mp4").unlink()
    assert matched(tmp_path, ("brush_hair", "x")) == ["brush hair/frames/x"]
    (tmp_path / "brush hair/frames/x/1.jpg").unlink()
    assert matched(tmp_path, ("brush_hair", "x")) == ["copy/x.mp4"]


def test_image_beside_videos_does_not_hide_them(tmp_path):
    touch(tmp_path, "dive/a.mp4", "dive/thumbnail.jpg", "dive/b/1.png", "dive/b/deep/c.mp4")
    assert matched(tmp_path, "a", "b", "c") == ["dive/a.mp4", "dive/b", "dive/b/deep/c.mp4"]


def test_links_and_closed_folders(tmp_path, monkeypatch):
    root = touch(tmp_path / "root", "real/a.mp4", "closed/b.mp4")
    touch(tmp_path / "elsewhere", "c.mp4")
    (root / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "real/circle").symlink_to(root, target_is_directory=True)
    (root / "d.mp4").symlink_to(root / "nothing")
    scandir = os.scandir

    def refuse_closed(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse_closed)
    matches = match_videos([("k", name) for name in "abcd"], root)
    assert matches.paths == ["real/a.mp4", None, "linked/c.mp4", "d.mp4"]
    assert matches.closed_folders == ["closed"] and matches.num_several == 0


def test_names_that_are_not_utf8(tmp_path):
    raw = b"caf\xe9.mp4".decode(errors="surrogateescape")
    try:
        touch(tmp_path, f"class/{raw}")
    except OSError:
        pytest.skip("this file system holds UTF-8 names only")
    assert matched(tmp_path, "caf\udce9") == [f"class/{raw}"]
    assert list(videos_below(tmp_path, [])) == [(f"class/{raw}", False)]


STEMS = st.text("abAB01_- é", min_size=1, max_size=5).filter(lambda name: name.strip() == name)


def respelled(stem: str, how: int) -> str:
    return [stem, stem.upper(), stem.replace("_", " "), stem.replace(" ", "_"), f"{stem}.mp4"][how]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(STEMS, st.integers(0, 4), st.sampled_from(["", "k/", "k/deep/"])), max_size=6),
    st.lists(STEMS, unique=True, max_size=6),
)
def test_matches_are_unique_and_independent_of_order(tmp_path_factory, files, listed):
    root = tmp_path_factory.mktemp("any")
    names = {f"{folder}{respelled(stem, how).strip()}.mp4" for stem, how, folder in files}
    touch(root, *names)
    paths = matched(root, *listed)
    found = [path for path in paths if path is not None]
    assert len(set(found)) == len(found) and set(found) <= names
    for stem, path in zip(listed, paths, strict=True):
        exact = {name for name in names if name.rpartition("/")[2].removesuffix(".mp4").removesuffix(".mp4") == stem}
        assert path in exact if exact else True  # the exact spelling always wins
        if path is not None:
            name = path.rpartition("/")[2].removesuffix(".mp4").removesuffix(".mp4")
            if not (name.isdecimal() and stem.isdecimal() and int(name) == int(stem)):
                assert list(filter(str.isalnum, name.casefold())) == list(filter(str.isalnum, stem.casefold()))
    assert matched(root, *listed[::-1]) == paths[::-1]
