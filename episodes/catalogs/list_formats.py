"""The list formats of the field: text files with one video per line and no header, told apart by their lines.

    train0//path.avi        HyRSM, MoLo, CLIP-FSAR: split and class number, then the path
    train8/78687            TRX, STRM on Something-Something: the same with the video's number
    path n_frames label     TSN and its descendants; n_frames is not believed
    path label              Kinetics, UCF101
    class/video             TRX on HMDB51, UCF101 and Kinetics; train/class/video names the split, too

A line may fit several. The first that fits all lines is meant, unless the disk holds the videos of another one.
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

SAMPLE = 64  # lines that are looked for on the disk where several formats fit
EXTENSIONS = (".txt", ".csv", ".list", ".lst", ".tsv", ".csv.gz", ".txt.gz")


@dataclass(frozen=True)
class ListFormat:
    """A format by its name, which is also its example, and the pattern of its lines."""

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


def read_lists(path: Path, find: Find, format_name: str | None = None) -> Iterator[Row]:
    """Rows ``(split or "", class name, video)`` of a list, or of a folder with a list for each split.

    Args:
        path: a text file, plain or gzipped; or a folder with one list of train, of val and of test, told by the name.
        find: from a video as listed to where it lies; None where it does not.
        format_name: one of ``FORMAT_NAMES``; None looks at the lines, and at the disk where several formats fit.

    Raises:
        DmgalError: a list that cannot be read, lines that fit no format, several formats that fit equally well, or
            several lists of one split.
    """
    try:
        for file in _lists_of_folder(path) if path.is_dir() else [path]:
            yield from _rows(file, find_format(file, find, format_name))
    except (OSError, EOFError, zlib.error) as error:
        raise DmgalError(
            f"cannot read the list {path}",
            received=str(error),
            expected="a text file in UTF-8, plain or gzipped (.gz), or a folder of such",
            remedy="check the path and the file",
        ) from error


def find_format(path: Path, find: Find, format_name: str | None = None) -> ListFormat:
    """The format of a list; args and errors as of `read_lists`."""
    fitting = [entry for entry in FORMATS if format_name in (None, entry.name)]
    sample: list[str] = []
    for number, line in _lines(path):
        left = [entry for entry in fitting if entry.pattern.fullmatch(line)]
        if not left:
            raise DmgalError(
                f"line {number} of {path} fits no list format that the lines before it fit",
                received=printable(line),
                expected="lines all of one format: " + " | ".join(entry.name for entry in fitting),
                remedy="correct the line, or write a CSV file with the columns split, class_name, video",
            )
        fitting = left
        if len(sample) < SAMPLE:
            sample.append(line)
    return fitting[0] if len(fitting) == 1 else _found_best(path, fitting, sample, find)


def split_in(name: str) -> str:
    """The split that a file's name tells: ``train`` for ``trainlist07.txt``; "" where it tells none, or several."""
    named = set(re.findall(r"(?<![a-z])(train|val|test)", name.lower()))
    return named.pop() if len(named) == 1 else ""


def _found_best(path: Path, fitting: list[ListFormat], sample: list[str], find: Find) -> ListFormat:
    videos: dict[str, list[ListFormat]] = {}  # formats that name the same videos are told apart by their order
    for entry in fitting:
        videos.setdefault("\n".join(_video(entry, line) for line in sample), []).append(entry)
    found = {
        formats[0]: sum(find(_video(formats[0], line)) is not None for line in sample) for formats in videos.values()
    }
    best = [entry for entry, count in found.items() if count == max(found.values(), default=0)]
    if len(best) > 1 and max(found.values()) > 0:
        raise DmgalError(
            f"the format of the list {path} is ambiguous",
            received=f"{printable(sample[0])}, where these fit and their videos are there: {_names(best)}",
            expected="lines that fit one list format, or videos that are there in one reading only",
            remedy=f"say which by data.list_format, e.g. --data.list-format {best[0].name!r}",
        )
    return best[0] if best else FORMATS[-1]


def _names(formats: list[ListFormat]) -> str:
    return " | ".join(entry.name for entry in formats)


def _video(entry: ListFormat, line: str) -> str:
    match = entry.pattern.fullmatch(line)
    return match["video"] if match else ""


def _rows(path: Path, entry: ListFormat) -> Iterator[Row]:
    split = split_in(path.name)
    name_of = _label_names(path, entry, split) if "label" in entry.pattern.groupindex else None
    for _, line in _lines(path):
        match = entry.pattern.fullmatch(line)
        if match is None:  # the file has changed since its format was found
            continue
        named = match.groupdict()
        name = named["class_name"] if name_of is None else name_of[named["label"]]
        yield named.get("split") or split, name, named["video"]


def _label_names(path: Path, entry: ListFormat, split: str) -> dict[str, str]:
    """Class names of the labels: the videos' folders where each label has one of its own, else ``train8``, ``class8``.

    Numbers alone will not do: lists of several splits often count from 0 each.
    """
    folders: dict[str, set[str]] = {}
    for _, line in _lines(path):
        match = entry.pattern.fullmatch(line)
        if match is not None:
            folders.setdefault(match["label"], set()).add(match["video"].rpartition("/")[0].rpartition("/")[2])
    names = [folder for of_label in folders.values() for folder in of_label]
    if all(names) and len(names) == len(folders) == len(set(names)):
        return {label: next(iter(of_label)) for label, of_label in folders.items()}
    return {label: f"{split or 'class'}{label}" for label in folders}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, with their number; paths of Windows come with forward slashes."""
    with opened_text(path, "rt") as file:
        for number, line in enumerate(file, start=1):
            line = line.strip()
            if line:
                yield number, line if "/" in line else line.replace("\\", "/")


def _lists_of_folder(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if file.name.lower().endswith(EXTENSIONS))
    of_split = {split: [file for file in files if split_in(file.name) == split] for split in SPLITS}
    several = [file.name for found in of_split.values() if len(found) > 1 for file in found]
    if several or not any(of_split.values()):
        raise DmgalError(
            f"cannot tell which lists in {folder} to take",
            received=listed(several or [file.name for file in files]),
            expected=f"one text file for each split, with {', '.join(SPLITS)} in its name",
            remedy="put the lists of one split of the classes into a folder of their own",
        )
    return [found[0] for found in of_split.values() if found]
