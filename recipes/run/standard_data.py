"""Videos of a standard split in a user's download, with counts per split and class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dmgal.errors import DmgalError
from dmgal.files import listed, printable
from dmgal.videos import VideoCatalog
from dmgal.videos.catalog.lists import FACTS, SPLITS, read_rows, standard_split_file, write_rows
from dmgal.videos.catalog.matching import Matches, match_videos

SHOWN = 5  # lines of a list on the terminal, the files are complete
FEW = 0.9  # classes with a smaller share of found videos are printed
Row = tuple[str, str, str]
"""Split, class name, video."""


@dataclass(frozen=True)
class FoundData:
    """A standard split matched to the videos below a folder.

    Attributes:
        name: name of the split.
        root: folder of the videos.
        rows: all videos of the split.
        matches: paths found for them.
    """

    name: str
    root: Path
    rows: Sequence[Row]
    matches: Matches

    @cached_property
    def found(self) -> list[Row]:
        """Rows with existing videos."""
        return [row for row, path in zip(self.rows, self.matches.paths, strict=True) if path is not None]

    @cached_property
    def missing(self) -> list[Row]:
        """Rows without videos."""
        return [row for row, path in zip(self.rows, self.matches.paths, strict=True) if path is None]

    @property
    def per_split(self) -> dict[str, int]:
        """Number of videos found per split."""
        return {split: sum(row[0] == split for row in self.found) for split in SPLITS}

    def per_class(self) -> list[tuple[str, str, int, int]]:
        """Return split, class, and the numbers of listed and found videos."""
        listed_counts = Counter((split, name) for split, name, _ in self.rows)
        found_counts = Counter((split, name) for split, name, _ in self.found)
        return [(*key, count, found_counts[key]) for key, count in listed_counts.items()]

    def write(self, out: Path) -> VideoCatalog:
        """Write split.csv with the found videos and found.csv with the counts. Return the catalog of split.csv."""
        counts = ((split, name, str(wanted), str(there)) for split, name, wanted, there in self.per_class())
        write_rows(out / "found.csv", counts, ("split", "class_name", "listed", "found"))
        row_paths = zip(self.rows, self.matches.paths, strict=True)
        write_rows(out / "split.csv", ((split, name, path, "") for (split, name, _), path in row_paths if path))
        return VideoCatalog.from_csv(out / "split.csv", self.root)

    def tell(self) -> None:
        """Print counts per split, the most incomplete classes, and unused videos and folders."""
        head = f"{self.name} ({FACTS[self.name].source}) in {self.root}"
        print(f"{head}: {len(self.found):,} of {len(self.rows):,} videos found")
        counts = self.per_class()
        for split in SPLITS:
            _tell_split(split, [(name, wanted, there) for s, name, wanted, there in counts if s == split])
        if self.matches.num_several:
            print(f"  {self.matches.num_several:,} videos exist more than once; the best match of each is used")
        if self.matches.num_other:
            print(f"  {_others(self.matches)} not listed")
        for folder in self.matches.closed_folders[:SHOWN]:
            print(f"  skipped, because permission is denied: {printable(folder)}")
        if len(self.matches.closed_folders) > SHOWN:
            print(f"  and {len(self.matches.closed_folders) - SHOWN:,} more folders")


def find_dataset(name: str, root: Path) -> FoundData:
    """Find the videos of a standard split below a folder.

    Raises:
        DmgalError: the folder does not exist, or has none of the videos.
    """
    if not root.is_dir():
        raise DmgalError(
            "The folder of the videos is missing.",
            received=str(root),
            expected="an existing folder",
            remedy="Check --root.",
        )
    rows = [(split, class_name, video) for split, class_name, video, _ in read_rows(standard_split_file(name))]
    data = FoundData(name, root, rows, match_videos([(class_name, video) for _, class_name, video in rows], root))
    if not data.found:
        raise DmgalError(
            f"No video of {name} was found.",
            received=f"{_others(data.matches)} in {root}",
            expected=f"files or folders of frames named such as {', '.join(video for *_, video in rows[:3])}",
            remedy="Check --root and --dataset.",
        )
    return data


def _others(matches: Matches) -> str:
    number, examples = matches.num_other, ", ".join(map(printable, matches.examples))
    verb = "is" if number == 1 else "are"
    return f"{number:,} other video{'' if number == 1 else 's'}{f', such as {examples},' if examples else ''} {verb}"


def _tell_split(split: str, counts: Sequence[tuple[str, int, int]]) -> None:
    """Print a split's ``counts``: class, videos listed, videos found."""
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
