"""The list formats of the field: text files with one video per line and no header, recognized by their lines.

    train0//path.avi        HyRSM, MoLo, CLIP-FSAR: split and class number, then the path
    train8/78687            TRX, STRM on Something-Something: the same with the video's number
    path n_frames label     TSN and its descendants; n_frames is ignored
    path label              Kinetics, UCF101
    class/video             TRX on HMDB51, UCF101 and Kinetics; train/class/video also names the split

A line may fit several formats. The first one that fits all lines is used, unless the disk has the videos of another.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import DmgalError
from ..listing import listed, printable
from .split_files import SPLITS, opened_text

SAMPLE = 64  # number of lines looked up on disk if several formats fit
EXTENSIONS = (".txt", ".csv", ".list", ".lst", ".tsv", ".csv.gz", ".txt.gz")


@dataclass(frozen=True)
class ListFormat:
    """The name of a format, which is also an example of it, and the pattern of its lines."""

    name: str
    pattern: re.Pattern[str]


def _format(name: str, pattern: str) -> ListFormat:
    return ListFormat(name, re.compile(pattern))


FORMATS = (
    _format("train0//path.avi", r"(?P<class_name>(?P<split>train|val|test)\d+)//+(?P<video>.+)"),
    _format("train8/78687", r"(?P<video>(?P<class_name>(?P<split>train|val|test)\d+)/[^/].*)"),
    _format("path n_frames label", r"(?P<video>.*[^\s,;])[\s,;]+\d+[\s,;]+(?P<label>\d+)"),
    _format("path label", r"(?P<video>.*[^\s,;])[\s,;]+(?P<label>\d+)"),
    _format("class/video", r"(?P<video>(?:(?P<split>train|val|test)/)?(?P<class_name>[^/]+)/[^/].*)"),
)
FORMAT_NAMES = tuple(entry.name for entry in FORMATS)

Row = tuple[str, str, str]
"""Split or "", class name, video."""
Find = Callable[[str], str | None]
"""A function that returns the path of a listed video, or None if it is missing."""


def read_lists(path: Path, find: Find, format_name: str | None = None) -> Iterator[Row]:
    """Yield rows ``(split or "", class name, video)`` of a list, or of a folder with a list for each split.

    Args:
        path: a text file, plain or gzipped; or a folder with one list each for train, val and test, named accordingly.
        find: returns the path of a listed video, or None if it is missing.
        format_name: one of ``FORMAT_NAMES``; None detects it from the lines, and from the disk if several fit.

    Raises:
        DmgalError: a list that cannot be read, lines that fit no format, several formats that fit equally well, or
            several lists of one split.
    """
    try:
        for file in _lists_of_folder(path) if path.is_dir() else [path]:
            yield from _rows(file, find_format(file, find, format_name))
    except (OSError, EOFError, zlib.error) as error:
        raise DmgalError(
            f"The list {path} cannot be read.",
            received=str(error),
            expected="a text file in UTF-8, plain or gzipped (.gz), or a folder of such files",
            remedy="Check the path and the file.",
        ) from error


def find_format(path: Path, find: Find, format_name: str | None = None) -> ListFormat:
    """Return the format of a list. Arguments and errors are those of `read_lists`."""
    fitting = [entry for entry in FORMATS if format_name in (None, entry.name)]
    sample: list[str] = []
    for number, line in _lines(path):
        still_fitting = [entry for entry in fitting if entry.pattern.fullmatch(line)]
        if not still_fitting:
            raise DmgalError(
                f"Line {number} of {path} fits no list format that the previous lines fit.",
                received=printable(line),
                expected=f"lines all of one format: {_names(fitting)}",
                remedy="Correct the line, or write a CSV file with the columns split, class_name, video.",
            )
        fitting = still_fitting
        if len(sample) < SAMPLE:
            sample.append(line)
    return fitting[0] if len(fitting) == 1 else _format_on_disk(path, fitting, sample, find)


def split_in(name: str) -> str:
    """Return the split named by a file name, ``train`` for ``trainlist07.txt``, or "" if it names none or several."""
    splits = set(re.findall(r"(?<![a-z])(train|val|test)", name.lower()))
    return splits.pop() if len(splits) == 1 else ""


def _format_on_disk(path: Path, fitting: list[ListFormat], sample: list[str], find: Find) -> ListFormat:
    """Return the format with the most videos of the sample on disk."""
    first_formats: dict[str, ListFormat] = {}  # of formats that name the same videos, the first one is used
    for entry in fitting:
        first_formats.setdefault("\n".join(_video(entry, line) for line in sample), entry)
    num_found = {
        entry: sum(find(_video(entry, line)) is not None for line in sample) for entry in first_formats.values()
    }
    most = max(num_found.values(), default=0)
    best = [entry for entry, count in num_found.items() if count == most]
    if len(best) > 1 and most > 0:
        raise DmgalError(
            f"The format of the list {path} is ambiguous.",
            received=f"{printable(sample[0])}, which fits these formats with existing videos: {_names(best)}",
            expected="lines that fit one list format, or videos that exist in one reading only",
            remedy=f"Set data.list_format, e.g. --data.list-format {best[0].name!r}.",
        )
    return best[0] if best else FORMATS[-1]


def _names(formats: list[ListFormat]) -> str:
    return " | ".join(entry.name for entry in formats)


def _video(entry: ListFormat, line: str) -> str:
    match = entry.pattern.fullmatch(line)
    return match["video"] if match else ""


def _rows(path: Path, entry: ListFormat) -> Iterator[Row]:
    split = split_in(path.name)
    class_of_label = _label_names(path, entry, split) if "label" in entry.pattern.groupindex else None
    for _, line in _lines(path):
        match = entry.pattern.fullmatch(line)
        if match is None:  # the file has changed since its format was detected
            continue
        fields = match.groupdict()
        name = fields["class_name"] if class_of_label is None else class_of_label[fields["label"]]
        yield fields.get("split") or split, name, fields["video"]


def _label_names(path: Path, entry: ListFormat, split: str) -> dict[str, str]:
    """Return the class name of each label.

    The name is the videos' folder if each label has its own folder, else ``train8`` or ``class8``. Numbers alone are
    not enough, because the lists of several splits often all count from 0.
    """
    folders: dict[str, set[str]] = {}
    for _, line in _lines(path):
        match = entry.pattern.fullmatch(line)
        if match is not None:
            folders.setdefault(match["label"], set()).add(match["video"].rpartition("/")[0].rpartition("/")[2])
    names = [folder for label_folders in folders.values() for folder in label_folders]
    if all(names) and len(names) == len(folders) == len(set(names)):
        return dict(zip(folders, names, strict=True))
    return {label: f"{split or 'class'}{label}" for label in folders}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the nonempty lines with their numbers. Windows paths get forward slashes."""
    with opened_text(path, "rt") as file:
        for number, line in enumerate(file, start=1):
            line = line.strip()
            if line:
                yield number, line if "/" in line else line.replace("\\", "/")


def _lists_of_folder(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if file.name.lower().endswith(EXTENSIONS))
    lists_by_split = {split: [file for file in files if split_in(file.name) == split] for split in SPLITS}
    ambiguous = [file.name for lists in lists_by_split.values() if len(lists) > 1 for file in lists]
    if ambiguous or not any(lists_by_split.values()):
        raise DmgalError(
            f"It is unclear which lists in {folder} to use.",
            received=listed(ambiguous or [file.name for file in files]),
            expected=f"one text file for each split, with {', '.join(SPLITS)} in its name",
            remedy="Put the lists of one split of the classes into a separate folder.",
        )
    return [lists[0] for lists in lists_by_split.values() if lists]
