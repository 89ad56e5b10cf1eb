"""KTH actions (Schuldt et al., ICPR 2004) for few-shot tasks, read from the layout of its download.

A file such as ``person01_boxing_d1_uncomp.avi`` shows an action a few times. ``00sequences.txt`` lists when:

    person01_boxing_d1          frames  1-95, 96-185, 186-245, 246-360

Each of these segments becomes a clip. Support and query of a task never show the same person. KTH has no few-shot
split. The one in ``classes.csv`` is ours, with one gesture and one gait in each part.
"""

from __future__ import annotations

import csv
import re
from importlib.resources import files
from pathlib import Path

import numpy as np

from dmgal.errors import DmgalError
from dmgal.files import reason, text_lines
from dmgal.videos import READERS, VideoCatalog

LIST, END = "00sequences.txt", "_uncomp.avi"
_LINE = re.compile(r"(?P<file>(?P<person>person\d+)_(?P<action>[a-z]+)_d\d)\s+frames\s+(?P<spans>[\d\s,-]+)")
_SPAN = re.compile(r"(\d+)-(\d+)")


def read(root: Path) -> VideoCatalog:
    """Return the catalog of the files that exist below a folder. It also holds ``00sequences.txt``.

    Raises:
        DmgalError: the list cannot be read, or none of its files exists.
    """
    paths = {path.name.removesuffix(END): path for path in sorted(root.rglob(f"*{END}"))}
    rows = [
        (f"{paths[line['file']].relative_to(root).as_posix()}#frames={int(first) - 1},{last}", line["action"], line)
        for line in map(_LINE.fullmatch, map(str.strip, _lines(root / LIST)))
        if line and line["file"] in paths
        for first, last in _SPAN.findall(line["spans"])
    ]
    if not rows:
        raise DmgalError(
            "No video of KTH was found.",
            received=f"{len(paths)} files named *{END} in {root}, none of them in {LIST}",
            expected=f"files such as person01_boxing_d1{END}, in any subfolder",
            remedy="Unpack the archives of KTH below data.root.",
        )
    names = sorted({action for _, action, _ in rows})
    return VideoCatalog(
        root=root,
        videos=[clip for clip, _, _ in rows],
        labels=np.array([names.index(action) for _, action, _ in rows], dtype=np.int64),
        class_names=tuple(names),
        class_splits=tuple(_splits()[name] for name in names),
        groups=tuple(line["person"] for _, _, line in rows),
    )


def _lines(path: Path) -> list[str]:
    try:
        return list(text_lines(path))
    except OSError as error:
        raise DmgalError(
            "The list of KTH cannot be read.",
            received=f"{path}: {reason(error)}",
            expected=f"{LIST} of the download in data.root",
            remedy="Copy it there, or correct data.root.",
        ) from error


def _splits() -> dict[str, str]:
    """Return the split of each class."""
    text = files(__package__).joinpath("classes.csv").read_text(encoding="utf-8")
    return {row["class_name"]: row["split"] for row in csv.DictReader(text.splitlines())}


READERS["kth"] = read
