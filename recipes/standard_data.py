"""A standard split's videos in a user's download: finds them, and tells how many were found per split and class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmgal.episodes import VideoCatalog
from dmgal.episodes.listing import printable
from dmgal.episodes.matching import Matches, match_videos
from dmgal.episodes.split_files import SPLITS, read_rows, write_rows
from dmgal.episodes.standard_splits import FACTS, standard_split_file
from dmgal.errors import DmgalError

SHOWN = 10  # lines of a list on the terminal; the files hold all
Row = tuple[str, str, str]
"""Split, class name, video."""


def match_dataset(name: str, root: Path, out: Path, missing: list[Row]) -> tuple[VideoCatalog, dict[str, Any]]:
    """The catalog of a standard split's videos as they lie below a folder, and how many were found per split.

    The counts are printed split by split, with the classes that lack most; ``out`` gets split.csv and found.csv, and
    ``missing`` the videos that were not found.

    Raises:
        DmgalError: no folder, or none of the videos in it.
    """
    rows = [(split, class_name, video) for split, class_name, video, _ in read_rows(standard_split_file(name))]
    if not root.is_dir():
        raise DmgalError(
            "The folder of the videos is missing.",
            received=str(root),
            expected="an existing folder",
            remedy="check --root",
        )
    matches = match_videos([(class_name, video) for _, class_name, video in rows], root)
    found = [row for row, path in zip(rows, matches.paths, strict=True) if path is not None]
    if not found:
        raise DmgalError(
            f"No video of {name} was found.",
            received=f"{matches.num_other:,} other videos in {root}, such as "
            f"{', '.join(map(printable, matches.examples)) or 'none'}",
            expected=f"files or folders of frames named such as {', '.join(video for *_, video in rows[:3])}",
            remedy="check --root and --dataset",
        )
    missing += [row for row, path in zip(rows, matches.paths, strict=True) if path is None]
    _print_found(name, root, rows, found, matches)
    write_rows(out / "found.csv", _per_class(rows, found), ("split", "class_name", "listed", "found"))
    placed = zip(rows, matches.paths, strict=True)
    write_rows(out / "split.csv", ((split, class_name, path, "") for (split, class_name, _), path in placed if path))
    per_split = {split: sum(row[0] == split for row in found) for split in SPLITS}
    return VideoCatalog.from_csv(out / "split.csv", root), per_split


def _per_class(rows: Sequence[Row], found: Sequence[Row]) -> list[tuple[str, str, str, str]]:
    listed, there = (Counter((split, name) for split, name, _ in some) for some in (rows, found))
    return [(split, name, str(count), str(there[split, name])) for (split, name), count in listed.items()]


def _print_found(name: str, root: Path, rows: Sequence[Row], found: Sequence[Row], matches: Matches) -> None:
    print(f"{name} ({FACTS[name].source}) in {root}: {len(found):,} of {len(rows):,} videos found")
    per_class = _per_class(rows, found)
    for split in SPLITS:
        counts = [(class_name, int(listed), int(there)) for s, class_name, listed, there in per_class if s == split]
        lacking = [entry for entry in counts if entry[2] < entry[1]]
        print(
            f"  {split:<5} {sum(c for *_, c in counts):,} of {sum(c for _, c, _ in counts):,} videos; "
            f"{len(counts) - len(lacking)} of {len(counts)} classes complete"
        )
        for class_name, listed, there in sorted(lacking, key=lambda entry: entry[2] / entry[1])[:SHOWN]:
            print(f"        {there:,} of {listed:,}  {class_name}")
        if len(lacking) > SHOWN:
            print(f"        and {len(lacking) - SHOWN} more classes: found.csv")
    if matches.num_several:
        print(f"  {matches.num_several:,} videos are there more than once; the best match of each was taken")
    for folder in matches.closed_folders[:SHOWN]:
        print(f"  not looked into, for want of the right to: {printable(folder)}")
