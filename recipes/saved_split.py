"""A split that no file names is drawn once, by the seed, and a run keeps it in split.csv.

Drawn again with one class more, it would be another one: classes of the test might have been trained on.
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
    """Whether a file of its own says what the split is, also later; lists may leave it open."""
    if data.generate != "no":
        return True
    if data.split_file is None or data.list_format is not None:
        return False
    return data.split_file.is_file() and looks_like_split_file(data.split_file)


def read_split(path: Path) -> dict[str, str]:
    """The split of every class, by its name; empty where there is no such file."""
    return {name: split for split, name, _, _ in read_rows(path)} if path.is_file() else {}


def split_of(catalog: VideoCatalog) -> dict[str, str]:
    """The split of every class of a catalog, by its name."""
    return dict(zip(catalog.class_names, catalog.class_splits or (), strict=True))


def with_saved_split(catalog: VideoCatalog, seed: int, path: Path | None) -> VideoCatalog:
    """A catalog without a split gets that of a run, and loses the classes that the run did not know, which is told.

    Where there is no such file, or these are all other classes, the split is drawn.
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
