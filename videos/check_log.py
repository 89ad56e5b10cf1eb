"""The log of a check: one line of JSON per video, written as results arrive. A stopped check resumes from its log.

The first line names the root folder with links resolved. A log of another root is ignored. The last line of a video is
valid as long as its file has the size and time recorded there. Videos are identified by path, so the log stays valid
when the catalog grows. Finding the remaining videos and those of equal content takes 25 bytes per video of the
catalog, for any length of log.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TextIO, TypedDict

import numpy as np

from ..errors import DmgalError
from ..files import UNREADABLE, UnusableFileError, is_file_name, log_lines, printable, reason, text_lines
from .catalog.files import stamp
from .catalog.lists import write_rows
from .checking import CheckedVideo

LINES_AT_ONCE = 8192
REPORT_COLUMNS = ("video", "frames", "problem")
ENTRY_KEYS = {*REPORT_COLUMNS, "stamp", "content"}
"""A line without one of these, as of an earlier version, does not count as checked."""


class Entry(TypedDict):
    """Line of the log: the result of a video."""

    video: str
    frames: int
    problem: str | None
    content: int
    stamp: list[int]


class CheckLog:
    """The log of a root folder's videos.

    Args:
        path: the log file; created if absent, overwritten if it belongs to another root.
        root: folder of the videos.
        videos: paths of the videos to check, relative to the root.

    Attributes:
        problems: results of the videos with a problem, by path, as read by `done` or added by `write`.
    """

    def __init__(self, path: Path, root: Path, videos: Sequence[str]) -> None:
        self.path, self._root, self._videos = path, root, videos
        hashes = np.fromiter((_hash(video) for video in videos), dtype=np.uint64, count=len(videos))
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]
        self.problems: dict[str, CheckedVideo] = {}
        self._contents = np.zeros(len(videos), dtype=np.uint64)

    @property
    def is_of_root(self) -> bool:
        """True if the log exists and belongs to this root."""
        return _logged_root(self.path) == str(self._root.resolve())

    def done(self) -> np.ndarray:
        """Return the mask of videos that are in the log and have not changed since, ``(V,)`` bool."""
        done = np.zeros(len(self._videos), dtype=bool)
        for indices, entries in self._entries():
            for index, entry in zip(indices.tolist(), entries, strict=True):
                video = entry["video"]
                self._update_problems(video, CheckedVideo(entry["frames"], entry["problem"]))
                done[index] = entry["stamp"] == list(stamp(os.path.join(self._root, video)))
                self._contents[index] = entry["content"] if done[index] else 0
        return done

    @contextmanager
    def writer(self) -> Iterator[TextIO]:
        """Open the log for `write`, at the end of its last complete line."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            resumes = self.is_of_root
            if resumes:
                _remove_incomplete_line(self.path)
            with self.path.open("a" if resumes else "w", encoding="utf-8") as file:
                if not resumes:
                    file.write(json.dumps({"root": str(self._root.resolve())}) + "\n")
                yield file
        except BrokenPipeError:  # comes from printing inside the context, not from the log
            raise
        except OSError as error:
            raise DmgalError(
                f"The log of the check, {self.path}, cannot be written.",
                received=str(error),
                expected="a writable folder with free space",
                remedy="Free some space or pass another --out. The check resumes where it stopped.",
            ) from error

    def write(self, file: TextIO, index: int, checked: CheckedVideo) -> None:
        """Append the result of the video with this index."""
        video = self._videos[index]
        self._update_problems(video, checked)
        self._contents[index] = checked.content
        entry = {"video": video, **asdict(checked), "stamp": checked.stamp or stamp(self._root / video)}
        file.write(json.dumps(entry) + "\n")

    def equal_contents(self) -> list[list[int]]:
        """Return the groups of videos that `done` or `write` found to have equal content, in catalog order."""
        values, counts = np.unique(self._contents, return_counts=True)
        groups: dict[int, list[int]] = {}
        for index in np.flatnonzero(np.isin(self._contents, values[(counts > 1) & (values > 0)])).tolist():
            groups.setdefault(int(self._contents[index]), []).append(index)
        return list(groups.values())

    def _update_problems(self, video: str, checked: CheckedVideo) -> None:
        if checked.problem is not None:
            self.problems[video] = checked
        elif self.problems:
            self.problems.pop(video, None)

    def _entries(self) -> Iterator[tuple[np.ndarray, list[Entry]]]:
        """Yield indices of the catalog's videos and their log entries, in chunks of ``LINES_AT_ONCE`` lines."""
        if not self.is_of_root or not len(self._videos):
            return
        all_lines = log_lines(self.path)
        while lines := list(islice(all_lines, LINES_AT_ONCE)):
            entries = [entry for entry in map(_parse, lines) if entry is not None]
            hashes = np.fromiter((_hash(entry["video"]) for entry in entries), np.uint64, len(entries))
            position = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
            # With a million names, a collision of 64-bit hashes occurs in one of forty million catalogs.
            is_known = self._hashes[position] == hashes
            yield self._order[position[is_known]], [entries[number] for number in np.flatnonzero(is_known)]


def write_report(path: Path, problems: dict[str, CheckedVideo]) -> None:
    """Write the videos that do not decode completely to a CSV file of path, number of decoded frames and problem."""
    rows = ((video, str(checked.frames), checked.problem or "") for video, checked in sorted(problems.items()))
    write_rows(path, rows, REPORT_COLUMNS)


def read_report(path: Path) -> dict[str, CheckedVideo]:
    """Read a report that `write_report` wrote.

    Raises:
        DmgalError: the file cannot be read, or is not such a report.
    """
    try:
        rows = csv.reader(text_lines(path))
        if tuple(next(rows, ())) != REPORT_COLUMNS:
            raise ValueError(f"the first line is not {','.join(REPORT_COLUMNS)}")
        return {video: CheckedVideo(int(frames), problem) for video, frames, problem in rows}
    except (*UNREADABLE, ValueError, csv.Error) as error:
        raise DmgalError(
            f"dmgal cannot read the report {path}.",
            received=printable(reason(error)[:200]),
            expected="the report.csv that 'dmgal prepare' wrote",
            remedy="Run 'dmgal prepare' again, or remove data.report.",
        ) from error


def _hash(video: str) -> int:
    """Return a 64-bit hash of a path, which may contain surrogate escapes."""
    return int.from_bytes(blake2b(video.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def _parse(line: str) -> Entry | None:
    """Return the entry of a log line, or None if the line is invalid, such as one cut short by a kill."""
    try:
        entry: Entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not entry.keys() >= ENTRY_KEYS:
        return None
    is_usable = isinstance(entry["video"], str) and isinstance(entry["problem"], str | None)
    is_usable = is_usable and is_file_name(entry["video"])
    numbers = isinstance(entry["frames"], int) and isinstance(entry["content"], int)
    return entry if is_usable and numbers and 0 <= entry["content"] < 2**64 else None


def _logged_root(path: Path) -> str | None:
    """Return the root that the first line names.

    Return None if there is no log, or if its first line is cut, much too long or without a root.
    """
    try:
        first_line = next(log_lines(path), "")
        entry = json.loads(first_line) if first_line.endswith("\n") else None
    except (FileNotFoundError, UnusableFileError, ValueError, RecursionError):
        return None
    root = entry.get("root") if isinstance(entry, dict) else None
    return root if isinstance(root, str) else None


def _remove_incomplete_line(path: Path) -> None:
    """Truncate the file after its last newline. A killed check may leave part of a line."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 4096)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                file.truncate(start + newline + 1)
                return
            end = start
        file.truncate(0)
