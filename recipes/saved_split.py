"""Class splits drawn by the seed, and saved in the split.csv of a run.

A split drawn again after a class was added would differ, and test classes could then be among the trained ones.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dmgal.episodes import VideoCatalog
from dmgal.episodes.catalogs.split_files import looks_like_split_file, read_rows
from dmgal.episodes.listing import listed
from dmgal.recipes.config import DataConfig

SAVED_SPLIT = "split.csv"


def has_split_file(data: DataConfig) -> bool:
    """Return True if the data itself fixes the split. Lists may leave it open."""
    if data.generate != "no":
        return True
    if data.split_file is None or data.list_format is not None:
        return False
    return data.split_file.is_file() and looks_like_split_file(data.split_file)


def read_split(path: Path) -> dict[str, str]:
    """Return the split of every class by name, or an empty dict if there is no such file."""
    return {name: split for split, name, _, _ in read_rows(path)} if path.is_file() else {}


def split_of(catalog: VideoCatalog) -> dict[str, str]:
    """Return the split of every class of a catalog by name."""
    return dict(zip(catalog.class_names, catalog.class_splits or (), strict=True))


def with_saved_split(catalog: VideoCatalog, seed: int, path: Path | None) -> VideoCatalog:
    """Return the catalog with the saved split of a run, without classes unknown to the run, which are reported.

    Draw the split if there is no such file, or if it has none of the classes.
    """
    saved = read_split(path) if path is not None else {}
    new = [name for name in catalog.class_names if name not in saved]
    if len(new) == len(catalog.class_names):
        return catalog.with_seeded_split(seed)
    gone = sorted(set(saved) - set(catalog.class_names))
    if os.environ.get("RANK", "0") == "0":
        for names, what in ((new, "new and left out"), (gone, "no longer there")):
            if names:
                print(f"classes by {path}, {what}: {listed(names)}", file=sys.stderr, flush=True)
    return catalog.with_split(saved)
