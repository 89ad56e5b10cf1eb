"""Names of videos: their order, their stems, and finding them below a folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmgal.videos.catalog.files import VideoFinder, natural_order, stem_of

NAMES = st.lists(st.text("abAB019_.é", max_size=6), max_size=8)


def slow_key(name: str) -> tuple:
    """Return the key by definition: alternating texts and numbers, then the name itself."""
    parts = re.split("([0-9]+)", name)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


@given(NAMES)
def test_natural_order(names):
    assert natural_order(names) == sorted(names, key=slow_key)


@given(st.integers(1, 6), st.sets(st.integers(0, 10**6 - 1)))
def test_natural_order_of_numbered_names(digits, numbers):
    names = [f"clip{number:0{digits}}.mp4" for number in numbers]
    assert natural_order(names) == [f"clip{number:0{digits}}.mp4" for number in sorted(numbers)]


@pytest.mark.parametrize(
    ("name", "stem"), [("a.mp4", "a"), ("a.MP4.webm", "a"), ("v1.2", "v1.2"), ("a.b.AVI", "a.b"), ("a.txt", "a.txt")]
)
def test_stems(name, stem):
    assert stem_of(name) == stem


def test_finding(tmp_path):
    for name in ("x/a.avi", "x/a.mp4", "x/b.WEBM", "x/frames/1.jpg", "x/note.txt", "x/.mp4", "x/mp4", "top.mov"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    finder = VideoFinder(tmp_path)
    found = {
        "x/a": "x/a.avi",
        "x/a.mp4": "x/a.mp4",
        "x/b": "x/b.WEBM",
        "x/b.WEBM": "x/b.WEBM",
        "x/frames": "x/frames",
        "top": "top.mov",
        "x/a.mov": None,
        "x/c": None,
        "x/": None,
        "": None,
        "nowhere/a": None,
        "x/nu\0ll": None,
    }
    assert {video: finder.find(video) for video in found} == found
    below = {"/mnt/data/x/a": "x/a.avi", "y/z/top.mov": "top.mov", "train8/x/b": "x/b.WEBM", "y/a": None, "top/": None}
    assert {video: finder.find_below(video) for video in below} == below


def test_unlistable_folder_counts_as_empty(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.listdir", refuse)
    assert VideoFinder(Path(tmp_path)).find("a/b") is None
