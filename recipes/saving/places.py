"""A run folder can be handed on: the absolute paths of the machine that trained are kept apart from the recipe.

    recipe.yaml   data: {root: ssv2}
    paths.yaml    data.root: /disk/ssv2

Where ``paths.yaml`` is left out, the path in the recipe counts from the working folder.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Tree = dict[str, Any]


def set_apart(tree: Mapping[str, Any]) -> tuple[Tree, dict[str, str]]:
    """A recipe's mapping with every absolute path shortened to its last part, and the whole paths by dotted key."""
    shared: Tree = copy.deepcopy(dict(tree))
    paths = dict(_absolute(shared))
    for key, path in paths.items():
        _put(shared, key, Path(path).name)
    return shared, paths


def put_back(tree: Mapping[str, Any], paths: Mapping[str, str]) -> Tree:
    """The mapping with its absolute paths; the inverse of ``set_apart``."""
    whole: Tree = copy.deepcopy(dict(tree))
    for key, path in paths.items():
        _put(whole, key, path)
    return whole


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
