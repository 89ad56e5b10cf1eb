"""Split files: CSV with the columns ``split,class_name,video`` and optionally ``reversal``, plain or gzipped.

The column ``video`` may contain any file name, even one that is not valid UTF-8. Everything else is UTF-8.
"""

from __future__ import annotations

import csv
import gzip
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TextIO, cast

from ...errors import DmgalError
from ..listing import printable

SPLITS = ("train", "val", "test")
COLUMNS = ("split", "class_name", "video", "reversal")
DELIMITERS = (",", ";", "\t")  # spreadsheets of some countries use the second


def read_rows(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """Yield rows ``(split, class name, video, reversal or "")``. Other columns and empty rows are ignored.

    Raises:
        DmgalError: the file cannot be read, a column is missing, or a line cannot be used.
    """
    try:
        with opened_text(path, "rt") as file:
            header, delimiter = _header(file.readline())
            yield from _rows(csv.reader(file, delimiter=delimiter), header, path)
    except (OSError, EOFError, zlib.error, UnicodeError, csv.Error) as error:
        raise DmgalError(
            f"The split file {path} cannot be read.",
            received=str(error),
            expected="a CSV file in UTF-8, plain or gzipped (.gz)",
            remedy="Check the path and the file.",
        ) from error


def write_rows(path: Path, rows: Iterable[Sequence[str]], columns: Sequence[str] = COLUMNS) -> None:
    """Write a CSV file, by default a split file. The file is replaced atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with opened_text(temporary, "wt") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(rows)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def looks_like_split_file(path: Path) -> bool:
    """Return True if the first line names a column of a split file, or if the file cannot be read.

    `read_rows` raises the error for an unreadable file.
    """
    try:
        with opened_text(path, "rt") as file:
            return len(_absent(_header(file.readline())[0])) < 3
    except (OSError, EOFError, zlib.error, csv.Error):
        return True


def opened_text(path: Path, mode: Literal["rt", "wt"]) -> TextIO:
    """Open a text file, gzipped if its name ends in ``.gz``. Bytes that are not valid UTF-8 are preserved."""
    encoding = "utf-8-sig" if mode == "rt" else "utf-8"  # spreadsheets start files with a byte order mark
    if path.suffix == ".gz":
        return cast(TextIO, gzip.open(path, mode, encoding=encoding, errors="surrogateescape", newline=""))
    return cast(TextIO, open(path, mode, encoding=encoding, errors="surrogateescape", newline=""))


def _header(line: str) -> tuple[list[str], str]:
    """Return the column names and the delimiter."""
    line = line.rstrip("\r\n")
    delimiter = max(DELIMITERS, key=line.count)
    return [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])], delimiter


def _absent(header: Sequence[str]) -> list[str]:
    return [column for column in COLUMNS[:3] if column not in header]


def _rows(lines: Iterator[list[str]], header: list[str], path: Path) -> Iterator[tuple[str, str, str, str]]:
    absent = _absent(header)
    if absent:
        raise DmgalError(
            f"{path} is not a split file.",
            received=f"a first line with {', '.join(map(printable, header)) or 'nothing'}",
            expected="a first line with split, class_name and video",
            remedy=f"Add the column {' and '.join(absent)}.",
        )
    split_at, name_at, video_at = (header.index(column) for column in COLUMNS[:3])
    reversal_at = header.index("reversal") if "reversal" in header else None
    for number, row in enumerate(lines, start=2):
        if not any(row):
            continue
        if len(row) != len(header) or row[split_at] not in SPLITS or not row[name_at]:
            raise DmgalError(
                f"Row {number} of {path} is invalid.",
                received=printable(",".join(row)),
                expected=f"{len(header)} values, the split one of {', '.join(SPLITS)}, and a class name",
                remedy="Correct the row.",
            )
        row[name_at].encode()  # raises UnicodeError if the name is not valid UTF-8
        yield row[split_at], row[name_at], row[video_at], row[reversal_at] if reversal_at is not None else ""
