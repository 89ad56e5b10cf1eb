"""Atomic replacement of a folder. Readers see either the old or the new folder."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from pathlib import Path

AT_FDCWD = -100
RENAME_EXCHANGE = 2
RENAME_SWAP = 2


def put_in_place(new: Path, place: Path) -> None:
    """Move the folder ``new`` to ``place`` and delete the previous folder.

    Linux and macOS swap two folders in one step. Other systems and some file systems need two renames. A kill between
    them leaves the old folder beside ``place``. The other function of this module restores it.
    """
    if not place.exists():
        new.rename(place)
        return
    if _swap(new, place):
        shutil.rmtree(new)
        return
    old = _aside(place)
    shutil.rmtree(old, ignore_errors=True)
    place.rename(old)
    new.rename(place)
    shutil.rmtree(old)


def mend(place: Path) -> None:
    """Restore the folder that a kill between two renames left aside."""
    old = _aside(place)
    if old.exists() and not place.exists():
        old.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def _aside(place: Path) -> Path:
    return place.with_name(f".{place.name}.old")


def _swap(one: Path, other: Path) -> bool:
    """Return True if the system has exchanged the two names."""
    names = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return bool(library.renamex_np(*names, ctypes.c_uint(RENAME_SWAP)) == 0)
        at = ctypes.c_int(AT_FDCWD)
        return bool(library.renameat2(at, names[0], at, names[1], ctypes.c_uint(RENAME_EXCHANGE)) == 0)
    except (AttributeError, OSError, TypeError):  # the function or, on Windows, the library is missing
        return False
