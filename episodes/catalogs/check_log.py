"""The log of a check, one line of JSON per video, written as results come; a check that was stopped goes on after it.

The first line names the root folder, without links: a log of another one counts for nothing. A video's last line
counts, and only while its file has the size and time that stand there. Videos are known by path, so the log stays good
when the catalog grows, and finding out what is left takes nine bytes per video of the catalog, however long the log.
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
from typing import Any, TextIO

import numpy as np

from ...errors import DmgalError
from ..listing import printable
from .checking import CheckedVideo
from .split_files import opened_text, write_rows
from .video_identity import stamp

LINES_AT_ONCE = 8192
REPORT_COLUMNS = ("video", "frames", "problem")


class CheckLog:
    """The log of a root folder's videos.

    Args:
        path: the log; made where absent, begun anew where it is of another root.
        root: folder of the videos.
        videos: their paths relative to it, the ones that matter now.

    Attributes:
        problems: the videos with a problem by path, as far as they were read by `done` or written.
    """

    def __init__(self, path: Path, root: Path, videos: Sequence[str]) -> None:
        self.path, self._root, self._videos = path, root, videos
        hashes = np.fromiter((_hashed(video) for video in videos), dtype=np.uint64, count=len(videos))
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]
        self.problems: dict[str, CheckedVideo] = {}

    @property
    def is_of_root(self) -> bool:
        """Whether there is a log, and of videos below this root."""
        return _logged_root(self.path) == str(self._root.resolve())

    def done(self) -> np.ndarray:
        """Which videos need no check, ``(V,)`` bool: what stands in the log and has not changed since."""
        done = np.zeros(len(self._videos), dtype=bool)
        for places, entries in self._entries():
            for place, entry in zip(places.tolist(), entries, strict=True):
                video = entry["video"]
                self._note(video, CheckedVideo(entry["frames"], entry["problem"]))
                done[place] = entry["stamp"] == list(stamp(os.path.join(self._root, video)))
        return done

    @contextmanager
    def writer(self) -> Iterator[TextIO]:
        """The log, open at the end of its last whole line; for `write`."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            goes_on = self.is_of_root
            if goes_on:
                _cut_half_line(self.path)
            with self.path.open("a" if goes_on else "w", encoding="utf-8") as file:
                if not goes_on:
                    file.write(json.dumps({"root": str(self._root.resolve())}) + "\n")
                yield file
        except BrokenPipeError:  # of what was printed meanwhile
            raise
        except OSError as error:
            raise DmgalError(
                f"cannot write the log of the check, {self.path}",
                received=str(error),
                expected="a folder that can be written to, with space left",
                remedy="make room or pass another --out; a check goes on where it was",
            ) from error

    def write(self, file: TextIO, place: int, checked: CheckedVideo) -> None:
        """Adds what a video turned out to be."""
        video = self._videos[place]
        self._note(video, checked)
        entry = {"video": video, **asdict(checked), "stamp": checked.stamp or stamp(self._root / video)}
        file.write(json.dumps(entry) + "\n")

    def _note(self, video: str, checked: CheckedVideo) -> None:
        if checked.problem is not None:
            self.problems[video] = checked
        elif self.problems:
            self.problems.pop(video, None)

    def _entries(self) -> Iterator[tuple[np.ndarray, list[dict[str, Any]]]]:
        """The log's lines of videos that matter, some at a time, with the places of these videos."""
        if not self.is_of_root or not len(self._videos):
            return
        with self.path.open(encoding="utf-8", errors="replace") as file:
            while lines := list(islice(file, LINES_AT_ONCE)):
                entries = [entry for entry in map(_parsed, lines) if entry is not None]
                hashes = np.fromiter((_hashed(entry["video"]) for entry in entries), np.uint64, len(entries))
                at = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
                # of a million names two share their 64 bits once in forty million catalogs
                known = self._hashes[at] == hashes
                yield self._order[at[known]], [entries[number] for number in np.flatnonzero(known)]


def write_report(path: Path, problems: dict[str, CheckedVideo]) -> None:
    """The videos that do not decode to their end: a CSV file of path, frames that decode, and why not more."""
    rows = ((video, str(checked.frames), checked.problem or "") for video, checked in sorted(problems.items()))
    write_rows(path, rows, REPORT_COLUMNS)


def read_report(path: Path) -> dict[str, CheckedVideo]:
    """A report that `write_report` wrote.

    Raises:
        DmgalError: the file cannot be read, or is no such report.
    """
    try:
        with opened_text(path, "rt") as file:
            rows = csv.reader(file)
            if tuple(next(rows, ())) != REPORT_COLUMNS:
                raise ValueError(f"the first line is not {','.join(REPORT_COLUMNS)}")
            return {video: CheckedVideo(int(frames), problem) for video, frames, problem in rows}
    except (OSError, ValueError, csv.Error) as error:
        raise DmgalError(
            f"cannot read the report {path}",
            received=printable(str(error)),
            expected="the report.csv that 'dmgal prepare' wrote",
            remedy="run 'dmgal prepare' again, or leave data.report out",
        ) from error


def _hashed(video: str) -> int:
    return int.from_bytes(blake2b(video.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def _parsed(line: str) -> dict[str, Any] | None:
    """None for what is no line of a log, such as the end of a kill."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and {"video", "frames", "problem", "stamp"} <= entry.keys() else None


def _logged_root(path: Path) -> str | None:
    """What the first line names; None where there is no log, or its first line is not whole or names nothing."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            first = file.readline()
            entry = json.loads(first) if first.endswith("\n") else None
    except (FileNotFoundError, ValueError):
        return None
    root = entry.get("root") if isinstance(entry, dict) else None
    return root if isinstance(root, str) else None


def _cut_half_line(path: Path) -> None:
    """A kill may leave half a line, and the next one would be glued to it."""
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
