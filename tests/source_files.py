"""Python files of the checkout, for the tests that guard what they contain."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OTHER_FOLDERS = {"tests", "examples", "build", "dist", "__pycache__"}


@cache
def python_files(*, tests: bool) -> list[Path]:
    """Find every Python file of the checkout, but none of virtual environments, builds or hidden folders."""
    skipped = OTHER_FOLDERS - {"tests", "examples"} if tests else OTHER_FOLDERS
    found = [Path(name) for name in ROOT.glob("*.py")]
    for folder in ROOT.iterdir():
        if folder.is_dir() and folder.name not in skipped and not folder.name.startswith("."):
            found += folder.rglob("*.py")
    assert len(found) > 10, f"found only {found}"
    return found


@cache
def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a file, which several tests walk."""
    return ast.parse(path.read_text())
