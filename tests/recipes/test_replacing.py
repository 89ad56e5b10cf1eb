"""A complete folder exists at every instant while another one replaces it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dmgal.recipes.run.folder import Run
from dmgal.recipes.run.whole_folders import complete_folder, replace_folder, restore_folder

NAMES = ("one", "other")


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the code under test may catch it."""


def make_folder(path, text):
    path.mkdir()
    for name in NAMES:
        (path / name).write_text(text)
    return path


def content(folder):
    """Return the text of a complete folder, or None if files are missing."""
    texts = {name: (folder / name).read_text() for name in NAMES if (folder / name).exists()}
    return texts["one"] if len(texts) == len(NAMES) and len(set(texts.values())) == 1 else None


def test_replaced_folder_leaves_nothing_else(tmp_path):
    place = tmp_path / "place"
    for text in ("first", "second", "third"):
        replace_folder(make_folder(tmp_path / "new", text), place)
        assert content(place) == text and complete_folder(place) == place
        assert [path.name for path in tmp_path.iterdir()] == ["place"]


@pytest.mark.parametrize("leftover", [False, True], ids=["clean", "after an earlier kill"])
@pytest.mark.parametrize("last_call", range(1, 12))
def test_kill_at_any_file_operation_leaves_a_complete_folder(tmp_path, monkeypatch, leftover, last_call):
    """Every rename and every deletion of a file counts as one operation, and the kill precedes the last."""
    place, calls = make_folder(tmp_path / "place", "old"), 0
    if leftover:
        make_folder(tmp_path / ".place.old", "older")

    def killed_before(operation):
        def operate(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == last_call:
                raise Killed
            return operation(*arguments, **options)

        return operate

    def delete(folder, ignore_errors=False):
        for path in sorted(folder.iterdir()) if folder.exists() else ():
            killed_before(Path.unlink)(path)
        if folder.exists():
            killed_before(Path.rmdir)(folder)

    make_folder(tmp_path / "new", "new")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", delete)
        patch.setattr(Path, "rename", killed_before(Path.rename))
        try:
            replace_folder(tmp_path / "new", place)
        except Killed:
            pass
        else:
            assert calls < last_call
    expected = content(complete_folder(place))
    assert expected in ("old", "new")
    restore_folder(place)
    assert content(place) == expected
    assert {path.name for path in tmp_path.iterdir()} <= {"place", "new"}


def test_run_finds_an_adapter_left_aside_by_a_kill(tmp_path):
    run = Run(tmp_path)
    assert not run.adapter.exists()
    make_folder(tmp_path / ".adapter.old", "old")
    assert content(run.adapter) == "old"
    (run.adapter / "weights.safetensors").touch()
    assert run.weights == tmp_path / ".adapter.old" / "weights.safetensors"
    make_folder(tmp_path / "adapter", "new")
    assert content(run.adapter) == "new"
