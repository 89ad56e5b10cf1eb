"""Plug-ins: modules named by a variable, and installed distributions. `tests/examples/test_extensions.py` uses some."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dmgal.cli import COMMANDS, main
from dmgal.recipes.run.config import DataConfig
from dmgal.recipes.run.data import build_catalog
from dmgal.recipes.run.preparation import list_videos
from dmgal.videos import READERS, VideoCatalog

HELLO = """
from dmgal.cli import COMMANDS, Command

def main(argv):
    print("Hello", *argv)

COMMANDS["hello"] = Command(__name__, "greet the user")
"""
INSTALLED = {
    "METADATA": "Metadata-Version: 2.1\nName: broken.plugin\nVersion: 1.2\nSummary: a head that does not exist\n",
    "entry_points.txt": "[dmgal.plugins]\nbroken = broken_module\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on Python's path. Commands and modules are restored after the test."""
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(COMMANDS)
    yield tmp_path
    COMMANDS.clear()
    COMMANDS.update(before)
    for name in ("hello_module", "broken_module"):
        sys.modules.pop(name, None)


def test_module_of_the_variable_adds_a_command(folder: Path, monkeypatch, capsys) -> None:
    (folder / "hello_module.py").write_text(HELLO)
    monkeypatch.setenv("DMGAL_PLUGINS", " hello_module,")
    assert main(["--help"]) == 0 and "greet the user" in capsys.readouterr().out
    assert main(["hello", "Ada"]) == 0 and capsys.readouterr().out == "Hello Ada\n"


def test_unknown_module_of_the_variable_is_named(folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("DMGAL_PLUGINS", "nothing_here")
    assert main(["train"]) == 2
    assert "DMGAL_PLUGINS=nothing_here" in capsys.readouterr().err


def test_broken_distribution_is_named_and_can_be_disabled(folder: Path, monkeypatch, capsys) -> None:
    (folder / "broken_plugin-1.2.dist-info").mkdir()
    for name, content in INSTALLED.items():
        (folder / "broken_plugin-1.2.dist-info" / name).write_text(content)
    (folder / "broken_module.py").write_text("from dmgal.names import ThisIsNotThere")
    assert main(["--help"]) == 0
    assert "  broken.plugin 1.2  a head that does not exist\n" in capsys.readouterr().out
    assert "broken_module" not in sys.modules
    assert main(["no-such-command"]) == 2
    message = capsys.readouterr().err
    assert "broken_module of broken.plugin 1.2: ImportError: " in message and "ThisIsNotThere" in message
    assert "DMGAL_DISABLED_PLUGINS=broken.plugin" in message
    monkeypatch.setenv("DMGAL_DISABLED_PLUGINS", "other, Broken_Plugin")
    assert main(["no-such-command"]) == 2 and "Unknown command" in capsys.readouterr().err
    assert main(["--help"]) == 0 and "plug-ins:" not in capsys.readouterr().out


def test_reader_of_a_data_set_is_found_by_its_name(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "ann_wave.mp4").touch()

    def read(root: Path) -> VideoCatalog:
        return VideoCatalog(root, ["ann_wave.mp4"], np.array([0]), ("wave",), ("test",), groups=("ann",))

    monkeypatch.setitem(READERS, "own", read)
    data = DataConfig(name="own", root=tmp_path)
    assert build_catalog(data).groups == ("ann",)
    listed = list_videos(data, progress=False)
    assert listed.split is not None and listed.split.class_names == ("wave",)
    assert list_videos(DataConfig(root=tmp_path), progress=False).catalog is None  # a folder without classes
