"""Folders that are replaced as a whole: a kill at any time leaves the old one or the new one."""

from __future__ import annotations

import shutil
from pathlib import Path


def replace_folder(new: Path, path: Path) -> None:
    """Move the folder ``new`` to ``path`` and delete the previous folder there.

    A kill at any time leaves one of the two complete, at ``path`` or beside it. `complete_folder` finds it.
    """
    if path.exists():
        shutil.rmtree(_aside(path), ignore_errors=True)
        path.rename(_aside(path))
    new.rename(path)
    shutil.rmtree(_aside(path), ignore_errors=True)


def complete_folder(path: Path) -> Path:
    """Return ``path``, or the path of the previous folder if a kill between two renames left only that."""
    return path if path.exists() or not _aside(path).exists() else _aside(path)


def restore_folder(path: Path) -> None:
    """Move the previous folder back to ``path`` if a kill left only that, and delete it otherwise."""
    if complete_folder(path) != path:
        _aside(path).rename(path)
    shutil.rmtree(_aside(path), ignore_errors=True)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")
