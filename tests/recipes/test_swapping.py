"""A folder is there all the time while another takes its place."""

from __future__ import annotations

import threading

import pytest

import dmgal.recipes.run.checkpoints as swapping
from dmgal.recipes.run.checkpoints import put_in_place, restore_replaced  # put_in_place


def folder(path, text):
    path.mkdir()
    for name in ("one", "other"):
        (path / name).write_text(text)
    return path


@pytest.mark.parametrize("can_swap", [True, False])
def test_the_new_folder_is_in_place_and_nothing_else_is_left(tmp_path, monkeypatch, can_swap):
    if not can_swap:
        monkeypatch.setattr(swapping, "_swap", lambda one, other: False)
    place = tmp_path / "place"
    for text in ("first", "second", "third"):
        put_in_place(folder(tmp_path / "new", text), place)
        assert {path.read_text() for path in place.iterdir()} == {text}
        assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_readers_always_find_a_complete_folder(tmp_path):
    if not swapping._swap(folder(tmp_path / "a", "a"), folder(tmp_path / "b", "b")):
        pytest.skip("this system, or its file system, cannot swap two folders in one step")
    place, ended, missing = folder(tmp_path / "place", "0"), threading.Event(), []

    def look():
        while not ended.is_set():
            if not place.is_dir():
                missing.append(True)

    watcher = threading.Thread(target=look)
    watcher.start()
    for number in range(50):
        put_in_place(folder(tmp_path / "new", str(number)), place)
    ended.set()
    watcher.join()
    assert not missing


def test_a_kill_between_two_renames_is_repaired(tmp_path):
    place = folder(tmp_path / "place", "old")
    place.rename(tmp_path / ".place.old")
    restore_replaced(place)
    assert (place / "one").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["place"]
    folder(tmp_path / ".place.old", "older")  # killed behind the second rename
    restore_replaced(place)
    assert (place / "one").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["place"]
