"""A recipe ends alike however it was started: as a script, as a module, or as one of several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = '''
"""A recipe that is given what it cannot use."""
import sys
from dmgal.errors import DmgalError
from dmgal.recipes.entry import run_recipe

def main(argv: list[str] | None = None) -> int | None:
    arguments = sys.argv[1:] if argv is None else argv
    if arguments == ["fine"]:
        return None
    raise DmgalError("cannot", received=str(arguments), expected="fine", remedy="say fine")

if __name__ == "__main__":
    run_recipe(main)
'''


def launch(recipe: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(recipe), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "my_recipe.py"
    path.write_text(RECIPE)
    return path


def test_success_is_silent(recipe: Path) -> None:
    result = launch(recipe, "fine")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_mistake_is_printed_without_traceback(recipe: Path) -> None:
    result = launch(recipe, "wrong")
    assert result.returncode == 2
    assert result.stderr.startswith("error: cannot\n  received: ['wrong']") and "Traceback" not in result.stderr


def test_one_of_several_processes_names_itself(recipe: Path) -> None:
    result = launch(recipe, "wrong", WORLD_SIZE="2", RANK="1")
    assert result.returncode == 2
    assert result.stderr.startswith("process 1: error: cannot")
