"""Pages of the API reference: they list all public names. ``make docs`` fails if a listed name does not exist."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

import dmgal

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "adapters": "adapters",
    "backbones": "backbones",
    "episodes": "episodes",
    "heads": "episodes.heads",
    "evaluation": "episodes.evaluation",
    "videos": "videos",
    "visualization": "visualization",
    "testing": "testing",
}
"""Package by page."""
LISTED = {
    page.stem: re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    for page in (ROOT / "docs" / "reference").glob("*.md")
}


@pytest.mark.parametrize(("page", "package"), PACKAGES.items())
def test_page_lists_every_name_that_its_package_exports(page: str, package: str) -> None:
    names = {path.rpartition(".")[2] for path in LISTED[page]}
    assert set(import_module(f"dmgal.{package}").__all__) <= names


def test_every_name_of_the_root_is_listed() -> None:
    names = {path.rpartition(".")[2] for paths in LISTED.values() for path in paths}
    assert set(dmgal.__all__) - {"__version__"} <= names


def test_no_listed_name_is_private_or_a_module() -> None:
    """``dmgal.adapters.targets`` is a module, ``dmgal.adapters.targets.targets`` its function."""
    paths = [Path(*path.split(".")[1:]) for paths in LISTED.values() for path in paths]
    assert [path for path in paths if path.name.startswith("_")] == []
    assert [path for path in paths if (ROOT / path).is_dir() or (ROOT / path).with_suffix(".py").is_file()] == []
