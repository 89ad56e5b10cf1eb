"""Split files and the list formats of the field, and the five standard few-shot splits in this form.

A split file is CSV with the columns ``split,class_name,video`` and optionally ``reversal``, plain or gzipped. File
names may have any bytes, everything else is UTF-8. With the columns ``start`` and ``end`` each row is a segment of its
video, ``split`` may be missing, and ``class_name`` may be ``label``. Exports of annotation tools are segments without
splits, too. The lists of the field have one video per line and no header:

    train0//path.avi        HyRSM, MoLo, CLIP-FSAR: split and class number, then the path
    train8/78687            TRX, STRM on Something-Something: the same with the video's number
    path n_frames label     TSN and its descendants; n_frames is at least 1 and otherwise ignored
    path label              Kinetics, UCF101
    class/video             TRX on HMDB51, UCF101 and Kinetics; train/class/video also names the split

A line may fit several formats. The first one that fits all lines is used, unless the disk has the videos of another.

The standard splits are the lists that the field's released code uses. Their numbers of videos agree with the papers,
except for SSv2-Full: OTAM (arXiv 1906.11415) states 77,500, 1,925 and 2,854 videos, and the released list has 67,013,
1,926 and 2,857. That list does not name its validation classes. ``val0`` to ``val11`` are our names for them.
"""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Literal, TextIO, cast, get_args

from ...errors import DmgalError
from ...files import UNREADABLE, atomic_write, listed, printable, reason, text_lines
from ..annotations.cvat import read_cvat
from ..annotations.elan import read_elan
from ..annotations.label_studio import read_label_studio
from ..annotations.segment import Annotation, Span, parse_time

LONGEST_SHOWN = 200  # characters of a line in a message
SAMPLE = 64  # number of lines looked up on disk if several formats fit
UPLOADED = re.compile(r"(?<![^/])[0-9a-f]{8}-(?=[^/]*$)")
EXTENSIONS = (".txt", ".csv", ".list", ".lst", ".tsv", ".csv.gz", ".txt.gz")


@dataclass(frozen=True)
class ListFormat:
    """The name of a format, which is also an example of it, and the pattern of its lines."""

    name: str
    pattern: re.Pattern[str]


FORMATS = tuple(
    ListFormat(name, re.compile(pattern))
    for name, pattern in {
        "train0//path.avi": r"(?P<class_name>(?P<split>train|val|test)\d+)//+(?P<video>.+)",
        "train8/78687": r"(?P<video>(?P<class_name>(?P<split>train|val|test)\d+)/[^/].*)",
        "path n_frames label": r"(?P<video>.*[^\s,;])[\s,;]+\d*[1-9]\d*[\s,;]+(?P<label>\d+)",
        "path label": r"(?P<video>.*[^\s,;])[\s,;]+(?P<label>\d+)",
        "class/video": r"(?P<video>(?:(?P<split>train|val|test)/)?(?P<class_name>[^/]+)/[^/].*)",
    }.items()
)
FORMAT_NAMES = tuple(entry.name for entry in FORMATS)

Row = tuple[str, str, str]
"""Split or "", class name, video."""
Find = Callable[[str], str | None]
"""A function that returns the path of a listed video, or None if it is missing."""
EXPORTS: dict[str, Callable[[Path], Iterator[Annotation]]] = {
    ".json": read_label_studio,
    ".xml": read_cvat,
    ".eaf": read_elan,
}
"""Readers of the files of annotation tools, by extension."""


def read_lists(path: Path, find: Find, format_name: str | None = None) -> Iterator[Row]:
    """Yield rows ``(split or "", class name, video)`` of a list, or of a folder with a list for each split.

    Args:
        path: a text file, plain or gzipped; an export of an annotation tool; or a folder with one list each for train,
            val and test, named accordingly.
        find: returns the path of a listed video, or None if it is missing.
        format_name: one of ``FORMAT_NAMES``; None detects it from the lines, and from the disk if several fit.

    Raises:
        DmgalError: a list that cannot be read, lines that fit no format, several formats that fit equally well, or
            several lists of one split.
    """
    if path.suffix.lower() in EXPORTS and not path.is_dir():
        yield from _exported_rows(path, find)
        return
    try:
        for file in _lists_of_folder(path) if path.is_dir() else [path]:
            yield from _list_rows(file, find_format(file, find, format_name))
    except UNREADABLE as error:
        raise DmgalError(
            f"The list {path} cannot be read.",
            received=reason(error),
            expected="a text file in UTF-8, plain or gzipped (.gz), or a folder of such files",
            remedy="Check the path and the file.",
        ) from error


def _exported_rows(path: Path, find: Find) -> Iterator[Row]:
    """Yield the rows of an export. Label Studio puts eight digits and a hyphen before the names of uploaded files."""
    num_rows = 0
    try:
        for annotation in EXPORTS[path.suffix.lower()](path):
            plain = replace(annotation, video=UPLOADED.sub("", annotation.video))
            num_rows += 1
            yield "", annotation.label, (annotation if find(annotation.video) else plain).clip
        if not num_rows:
            raise ValueError("no labeled segment")
    except (*UNREADABLE, ValueError) as error:
        raise DmgalError(
            f"The annotations {path} cannot be read.",
            received=reason(error),
            expected="labeled segments in a JSON export of Label Studio, 'CVAT for video 1.1' (.xml) or ELAN (.eaf)",
            remedy="Export them again, or write a CSV file with the columns video, label, start, end.",
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
                received=printable(line[:LONGEST_SHOWN]),
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


def _list_rows(path: Path, entry: ListFormat) -> Iterator[Row]:
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
            folder = match["video"].replace("\\", "/").rpartition("/")[0].rpartition("/")[2]
            folders.setdefault(match["label"], set()).add(folder)
    names = [folder for label_folders in folders.values() for folder in label_folders]
    if all(names) and len(names) == len(folders) == len(set(names)):
        return dict(zip(folders, names, strict=True))
    return {label: f"{split or 'class'}{label}" for label in folders}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the nonempty lines with their numbers. Windows paths get forward slashes."""
    for number, line in enumerate(text_lines(path), start=1):
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


SPLITS = ("train", "val", "test")
COLUMNS = ("split", "class_name", "video", "reversal")
SPAN = ("start", "end")
DELIMITERS = (",", ";", "\t")  # spreadsheets of some countries use the second


def read_rows(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """Yield rows ``(split, class name, video, reversal or "")``. Other columns and empty rows are ignored.

    Raises:
        DmgalError: the file cannot be read, a column is missing, or a line cannot be used.
    """
    try:
        lines = text_lines(path)
        header, delimiter = _header(next(lines, ""))
        yield from _rows(csv.reader(lines, delimiter=delimiter), header, path)
    except (*UNREADABLE, UnicodeError, csv.Error) as error:
        raise DmgalError(
            f"The split file {path} cannot be read.",
            received=reason(error),
            expected="a CSV file in UTF-8, plain or gzipped (.gz)",
            remedy="Check the path and the file.",
        ) from error


def read_column(path: Path, name: str) -> Iterator[str]:
    """Yield the value of another column for each row that `read_rows` yields.

    Raises:
        DmgalError: the file has no such column. Other errors are those of `read_rows`.
    """
    lines = text_lines(path)
    header, delimiter = _header(next(lines, ""))
    if name not in header:
        raise DmgalError(
            f"The split file {path} has no column {name!r}.",
            received=printable(", ".join(header)[:LONGEST_SHOWN]) or "nothing",
            expected=f"the column {name!r} in the first line",
            remedy="Correct data.group, or give a pattern of the video's path with parentheses around the group.",
        )
    at = header.index(name)
    yield from (row[at].strip() for row in csv.reader(lines, delimiter=delimiter) if any(row))


def write_rows(path: Path, rows: Iterable[Sequence[str]], columns: Sequence[str] = COLUMNS) -> None:
    """Write a CSV file, by default a split file. The file is replaced atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, _opened_to_write(temporary) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def looks_like_split_file(path: Path) -> bool:
    """Return True if the first line names a column of a split file, or if the file cannot be read.

    `read_rows` raises the error for an unreadable file.
    """
    return _names_column(path, *COLUMNS[:3], *SPAN)


def is_annotation_file(path: Path) -> bool:
    """Return True for the name of a file that lists clips with their classes: a CSV file or an export."""
    return path.name.lower().endswith((*EXPORTS, ".csv", ".csv.gz")) and not path.is_dir()


def has_split_column(path: Path) -> bool:
    """Return True if the first line names the column ``split``, or if the file cannot be read."""
    return _names_column(path, COLUMNS[0])


def _names_column(path: Path, *names: str) -> bool:
    if path.suffix.lower() in EXPORTS:
        return False
    try:
        return bool({*names} & {*_header(next(text_lines(path), ""))[0]})
    except (*UNREADABLE, csv.Error):
        return True


def _opened_to_write(path: Path) -> TextIO:
    """Open a text file, gzipped if its name ends in ``.gz``. Bytes that are not valid UTF-8 are preserved."""
    if path.suffix == ".gz":
        return cast(TextIO, gzip.open(path, "wt", encoding="utf-8", errors="surrogateescape", newline=""))
    return open(path, "w", encoding="utf-8", errors="surrogateescape", newline="")


def _header(line: str) -> tuple[list[str], str]:
    """Return the column names and the delimiter."""
    line = line.rstrip("\r\n")
    delimiter = max(DELIMITERS, key=line.count)
    names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
    if "class_name" not in names and "label" in names and {*SPAN} <= {*names}:
        names[names.index("label")] = "class_name"
    return names, delimiter


def _rows(lines: Iterator[list[str]], header: list[str], path: Path) -> Iterator[tuple[str, str, str, str]]:
    is_segmented = {*SPAN} <= {*header}
    absent = [column for column in COLUMNS[is_segmented:3] if column not in header]
    if absent:
        raise DmgalError(
            f"{path} is not a split file.",
            received=f"a first line with {printable(', '.join(header)[:LONGEST_SHOWN]) or 'nothing'}",
            expected="a first line with split, class_name and video, or with video, label, start and end",
            remedy=f"Add the column {' and '.join(absent)}.",
        )
    for number, row in enumerate(lines, start=2):
        if not any(row):
            continue
        fields = dict(zip(header, row, strict=False))
        split, name = fields.get("split", "").strip(), fields.get("class_name", "")
        is_known = split in SPLITS or ("split" not in header and is_segmented)
        if len(row) != len(header) or not is_known or not name.strip():
            splits = f", the split one of {', '.join(SPLITS)}" if "split" in header else ""
            raise _bad_row(path, number, row, f"{len(header)} values{splits}, and a class name")
        name.encode()  # raises UnicodeError if the name is not valid UTF-8
        video = fields["video"]
        if is_segmented:
            try:
                video = Annotation(video, name, Span(parse_time(fields["start"]), parse_time(fields["end"]))).clip
            except ValueError as error:
                raise _bad_row(path, number, row, "a start, and an end after it, in seconds", str(error)) from error
        yield split, name, video, fields.get("reversal", "").strip()


def _bad_row(path: Path, number: int, row: Sequence[str], expected: str, reason: str = "") -> DmgalError:
    return DmgalError(
        f"Row {number} of {path} is invalid.",
        received=printable(",".join(row)[:LONGEST_SHOWN]) + (f": {printable(reason)}" if reason else ""),
        expected=expected,
        remedy="Correct the row.",
    )


StandardSplit = Literal["ssv2_small", "ssv2_full", "kinetics100", "hmdb51", "ucf101"]
STANDARD_SPLITS: tuple[str, ...] = get_args(StandardSplit)


@dataclass(frozen=True)
class SplitFacts:
    """The source of a split and its numbers of classes and videos in train, val and test.

    Attributes:
        source: the paper, and the data set if the paper has several.
        classes: number of classes in train, val and test.
        videos: number of videos in train, val and test.
        mirror: True if a mirrored clip keeps its label.
    """

    source: str
    classes: tuple[int, int, int]
    videos: tuple[int, int, int]
    mirror: bool


FACTS: dict[str, SplitFacts] = {
    "ssv2_small": SplitFacts("CMN, ECCV 2018, on Something-Something V2", (64, 12, 24), (6400, 1200, 2400), False),
    "ssv2_full": SplitFacts("OTAM, CVPR 2020, on Something-Something V2", (64, 12, 24), (67013, 1926, 2857), False),
    "kinetics100": SplitFacts("CMN, ECCV 2018, on Kinetics-400", (64, 12, 24), (6400, 1200, 2400), True),
    "hmdb51": SplitFacts("ARN, ECCV 2020", (31, 10, 10), (4280, 1194, 1292), True),
    "ucf101": SplitFacts("ARN, ECCV 2020", (70, 10, 21), (9154, 1421, 2745), True),
}


def standard_split_file(name: str) -> Path:
    """Return the bundled split file of a standard split. It lists names of videos, which may be anywhere on disk."""
    return Path(str(files(__package__) / "splits" / f"{name}.csv.gz"))
