"""Folders that are replaced as a whole: a kill at any time leaves the old one or the new one."""

from __future__ import annotations

import shutil
from pathlib import Path


def replace_folder(new: Path, place: Path) -> None:
    """Move the folder ``new`` to ``place`` and delete the previous folder there.

    A kill at any time leaves one of the two complete, at ``place`` or beside it. `complete_folder` finds it.
    """
    if place.exists():
        shutil.rmtree(_aside(place), ignore_errors=True)
        place.rename(_aside(place))
    new.rename(place)
    shutil.rmtree(_aside(place), ignore_errors=True)


def complete_folder(place: Path) -> Path:
    """Return ``place``, or the path of the previous folder if a kill between two renames left only that."""
    return place if place.exists() or not _aside(place).exists() else _aside(place)


def restore_folder(place: Path) -> None:
    """Return the previous folder to ``place`` if a kill left only that, and delete it otherwise."""
    if complete_folder(place) != place:
        _aside(place).rename(place)
    shutil.rmtree(_aside(place), ignore_errors=True)


def _aside(place: Path) -> Path:
    return place.with_name(f".{place.name}.old")
