"""A standard split's videos in a user's download: finds them, and tells how many were found per split and class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dmgal.episodes import VideoCatalog
from dmgal.episodes.catalogs.matching import Matches, match_videos
from dmgal.episodes.catalogs.split_files import SPLITS, read_rows, write_rows
from dmgal.episodes.catalogs.standard_splits import FACTS, standard_split_file
from dmgal.episodes.listing import listed, printable
from dmgal.errors import DmgalError

SHOWN = 5  # lines of a list on the terminal; the files hold all
FEW = 0.9  # a class of which a smaller share was found is worth a line
Row = tuple[str, str, str]
"""Split, class name, video."""


@dataclass(frozen=True)
class FoundData:
    """A standard split, and where its videos lie below a folder.

    Attributes:
        name: of the split.
        root: the folder.
        rows: all that the split lists.
        matches: what was found of them.
    """

    name: str
    root: Path
    rows: Sequence[Row]
    matches: Matches

    @cached_property
    def found(self) -> list[Row]:
        """The rows whose videos are there."""
        return [row for row, path in zip(self.rows, self.matches.paths, strict=True) if path is not None]

    @cached_property
    def missing(self) -> list[Row]:
        """The rows whose videos are not."""
        return [row for row, path in zip(self.rows, self.matches.paths, strict=True) if path is None]

    @property
    def per_split(self) -> dict[str, int]:
        """How many videos of each split were found."""
        return {split: sum(row[0] == split for row in self.found) for split in SPLITS}

    def per_class(self) -> list[tuple[str, str, int, int]]:
        """Split, class, and how many of its videos are listed and found."""
        wanted, there = (Counter((split, name) for split, name, _ in some) for some in (self.rows, self.found))
        return [(split, name, count, there[split, name]) for (split, name), count in wanted.items()]

    def write(self, out: Path) -> VideoCatalog:
        """Writes split.csv, of what was found, and found.csv, the counts; the catalog of the former."""
        counts = ((split, name, str(wanted), str(there)) for split, name, wanted, there in self.per_class())
        write_rows(out / "found.csv", counts, ("split", "class_name", "listed", "found"))
        placed = zip(self.rows, self.matches.paths, strict=True)
        write_rows(out / "split.csv", ((split, name, path, "") for (split, name, _), path in placed if path))
        return VideoCatalog.from_csv(out / "split.csv", self.root)

    def tell(self) -> None:
        """Prints the counts split by split, the classes that lack most, and what could not be used."""
        head = f"{self.name} ({FACTS[self.name].source}) in {self.root}"
        print(f"{head}: {len(self.found):,} of {len(self.rows):,} videos found")
        counts = self.per_class()
        for split in SPLITS:
            _tell_split(split, [(name, wanted, there) for s, name, wanted, there in counts if s == split])
        if self.matches.num_several:
            print(f"  {self.matches.num_several:,} videos are there more than once; the best match of each was taken")
        if self.matches.num_other:
            print(f"  {_others(self.matches)} not listed")
        for folder in self.matches.closed_folders[:SHOWN]:
            print(f"  not looked into, for want of the right to: {printable(folder)}")
        if len(self.matches.closed_folders) > SHOWN:
            print(f"  and {len(self.matches.closed_folders) - SHOWN:,} more folders")


def find_dataset(name: str, root: Path) -> FoundData:
    """A standard split's videos as they lie below a folder.

    Raises:
        DmgalError: no folder, or none of the videos in it.
    """
    if not root.is_dir():
        raise DmgalError(
            "The folder of the videos is missing.",
            received=str(root),
            expected="an existing folder",
            remedy="check --root",
        )
    rows = [(split, class_name, video) for split, class_name, video, _ in read_rows(standard_split_file(name))]
    data = FoundData(name, root, rows, match_videos([(class_name, video) for _, class_name, video in rows], root))
    if not data.found:
        raise DmgalError(
            f"No video of {name} was found.",
            received=f"{_others(data.matches)} in {root}",
            expected=f"files or folders of frames named such as {', '.join(video for *_, video in rows[:3])}",
            remedy="check --root and --dataset",
        )
    return data


def _others(matches: Matches) -> str:
    number, examples = matches.num_other, ", ".join(map(printable, matches.examples))
    verb = "is" if number == 1 else "are"
    return f"{number:,} other video{'' if number == 1 else 's'}{f', such as {examples},' if examples else ''} {verb}"


def _tell_split(split: str, counts: Sequence[tuple[str, int, int]]) -> None:
    """``counts``: class, videos listed, videos found."""
    lacking = [entry for entry in counts if entry[2] < entry[1]]
    print(
        f"  {split:<5} {sum(there for *_, there in counts):,} of {sum(wanted for _, wanted, _ in counts):,} videos; "
        f"{len(counts) - len(lacking)} of {len(counts)} classes complete"
    )
    absent = [name for name, _, there in lacking if not there]
    if absent:
        print(f"        without a video and so left out, {len(absent)} of {len(counts)} classes: {listed(absent)}")
    few = sorted((entry for entry in lacking if 0 < entry[2] < FEW * entry[1]), key=lambda entry: entry[2] / entry[1])
    for class_name, wanted, there in few[:SHOWN]:
        print(f"        {there:,} of {wanted:,}  {class_name}")
    more = len(lacking) - len(absent) - len(few[:SHOWN])
    if more:
        print(f"        {more} more {'class lacks' if more == 1 else 'classes lack'} videos: found.csv")
