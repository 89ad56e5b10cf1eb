"""Split files: CSV with the columns ``split,class_name,video`` and perhaps ``reversal``, plain or gzipped."""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TextIO, cast

from ..errors import DmgalError

SPLITS = ("train", "val", "test")
COLUMNS = ("split", "class_name", "video", "reversal")


def read_rows(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """Rows as ``(split, class name, video, reversal or "")``; other columns are ignored.

    Raises:
        DmgalError: the file cannot be read, a column is missing, or a line cannot be used.
    """
    try:
        with _opened_text(path, "rt") as file:
            yield from _rows(csv.reader(file), path)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DmgalError(
            f"cannot read the split file {path}",
            received=str(error),
            expected="a CSV file in UTF-8, plain or gzipped (.gz)",
            remedy="check the path and the file",
        ) from error


def write_rows(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Write ``(split, class name, video, reversal)``; the file appears under its name only once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with _opened_text(temporary, "wt") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(rows)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _rows(lines: Iterator[list[str]], path: Path) -> Iterator[tuple[str, str, str, str]]:
    header = next(lines, [])
    absent = [column for column in COLUMNS[:3] if column not in header]
    if absent:
        raise DmgalError(
            f"{path} is not a split file",
            received=f"a first line with {', '.join(header) or 'nothing'}",
            expected="a first line with split, class_name and video",
            remedy=f"add the column {' and '.join(absent)}",
        )
    split_at, name_at, video_at = (header.index(column) for column in COLUMNS[:3])
    reversal_at = header.index("reversal") if "reversal" in header else None
    for number, row in enumerate(lines, start=2):
        if not row:
            continue
        if len(row) != len(header) or row[split_at] not in SPLITS or not row[name_at]:
            raise DmgalError(
                f"row {number} of {path} cannot be used",
                received=",".join(row),
                expected=f"{len(header)} values, the split one of {', '.join(SPLITS)}, and a class name",
                remedy="correct the row",
            )
        yield row[split_at], row[name_at], row[video_at], row[reversal_at] if reversal_at is not None else ""


def _opened_text(path: Path, mode: Literal["rt", "wt"]) -> TextIO:
    encoding = "utf-8-sig" if mode == "rt" else "utf-8"  # spreadsheets put a mark in front
    if path.suffix == ".gz":
        return cast(TextIO, gzip.open(path, mode, encoding=encoding, newline=""))
    return cast(TextIO, open(path, mode, encoding=encoding, newline=""))
