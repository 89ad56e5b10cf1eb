"""Separation of absolute paths from a recipe, so that a run folder can be shared.

    recipe.yaml   data: {root: ssv2}
    paths.yaml    data.root: /disk/ssv2

Without ``paths.yaml``, the path in the recipe is relative to the working folder.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Tree = dict[str, Any]


def set_apart(tree: Mapping[str, Any]) -> tuple[Tree, dict[str, str]]:
    """Return the mapping with absolute paths shortened to their last part, and the full paths by dotted key."""
    shared: Tree = copy.deepcopy(dict(tree))
    paths = dict(_absolute(shared))
    for key, path in paths.items():
        _put(shared, key, Path(path).name)
    return shared, paths


def put_back(tree: Mapping[str, Any], paths: Mapping[str, str]) -> Tree:
    """Return the mapping with its absolute paths restored. The inverse of ``set_apart``."""
    restored: Tree = copy.deepcopy(dict(tree))
    for key, path in paths.items():
        _put(restored, key, path)
    return restored


def _absolute(tree: Tree, prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            found += _absolute(value, f"{prefix}{key}.")
        elif isinstance(value, str) and os.path.isabs(value) and Path(value).name:
            found.append((f"{prefix}{key}", value))
    return found


def _put(tree: Tree, key: str, value: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        tree = tree[section]
    tree[last] = value
