"""Finds the videos of a split in whatever layout a download has: by their names, whatever stands around these.

A file or a folder of frames is a listed video, in this order, where its name without extensions
1. is the listed one;
2. is so but for case, the form of accents, spaces or underscores or hyphens, or zeros in front of a number that is
   the whole name, or in a Kinetics time suffix;
3. has lost a Kinetics time suffix such as ``_000010_000020``, or has one where the list has none;
4. has the same letters and numbers in the same order. Two numbers stay two, so ``11035_1`` is not ``110351``; nor is
   ``a (1)``, a second copy of ``a``, the video ``a1``.
A spelling counts only where it belongs to one listed video, and a file is one video at most. Where several files are
the same video, the better spelling wins, then a folder named as the class, then a file before frames, then the order of
paths. One walk over the disk, in memory that grows with the list and the number of folders, not with that of files.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .video_files import FRAME_EXTENSIONS, VIDEO_EXTENSIONS, stem_of

_TIMED = re.compile(r"(.{11})_(\d{1,6})_(\d{1,6})", re.DOTALL)  # YouTube's 11 characters, then seconds from and to
_SPACES = re.compile(r"[\s_-]+")
_NEW_NUMBER = re.compile(r"(?<=\d)[\W_]+(?=\d)|[\W_]*\((?=\d+\)$)")
_MARK = "\0"  # in front of a number that is not to be read on to what stands before it; in no name on a disk
NUM_SPELLINGS = 4

Spelling = tuple[str, ...]


@dataclass
class Matches:
    """What was found of a split's videos.

    Attributes:
        paths: of each listed video, relative to the root with forward slashes; None where it was not found.
        num_several: listed videos for which several files would do.
        num_other: videos on the disk that are not listed.
        examples: names of some of them.
        closed_folders: folders that could not be looked into.
    """

    paths: list[str | None]
    num_several: int = 0
    num_other: int = 0
    examples: list[str] = field(default_factory=list)
    closed_folders: list[str] = field(default_factory=list)


@dataclass(frozen=True, order=True)
class _Candidate:
    """A file for a listed video; the smallest is the best."""

    spelling: int
    elsewhere: bool
    is_folder: bool
    path: str


def match_videos(listed: Sequence[tuple[str, str]], root: Path) -> Matches:
    """Look for listed videos below a folder.

    Args:
        listed: ``(class name, video)`` of each; the names of the videos differ.
        root: the folder; links are followed, hidden names left out.
    """
    index = _SpellingIndex([video for _, video in listed])
    classes = [_letters(name) for name, _ in listed]
    best: list[_Candidate | None] = [None] * len(listed)
    several: set[int] = set()
    matches = Matches([])
    for path, is_folder in videos_below(root, matches.closed_folders):
        folder, _, name = path.rpartition("/")
        hit = index.find(name)
        if hit is None:
            matches.num_other += 1
            matches.examples += [path] if len(matches.examples) < 3 else []
            continue
        place, spelling = hit
        at_home = classes[place] in map(_letters, folder.split("/"))
        candidate, before = _Candidate(spelling, not at_home, is_folder, path), best[place]
        if before is not None:
            several.add(place)
        best[place] = candidate if before is None else min(before, candidate)
    matches.paths = [None if candidate is None else candidate.path for candidate in best]
    matches.num_several = len(several)
    return matches


def videos_below(root: Path, closed_folders: list[str]) -> Iterator[tuple[str, bool]]:
    """Every video below a folder as ``(path relative to it, whether it is a folder of frames)``, in no order.

    Links are followed, each folder is entered once; folders that cannot be looked into are added to the list.
    """
    waiting, entered = [""], set()
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(root / folder)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            yield from _videos_of(root, folder, waiting)
        except OSError:
            closed_folders.append(folder or str(root))


def _videos_of(root: Path, folder: str, waiting: list[str]) -> Iterator[tuple[str, bool]]:
    """Videos right in a folder, and the folder itself where it holds frames; its folders join those that wait."""
    below, holds_frames = [], False
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = f"{folder}/{entry.name}" if folder else entry.name
            name = entry.name.lower()
            if name.endswith(FRAME_EXTENSIONS):
                holds_frames = True
            elif entry.is_dir():
                below.append(path)
            elif name.endswith(VIDEO_EXTENSIONS):
                yield path, False
    if holds_frames and folder:
        yield folder, True
    waiting += sorted(below, reverse=True)


class _SpellingIndex:
    """Places of the listed videos by each of their spellings that no other listed video has."""

    def __init__(self, videos: Sequence[str]) -> None:
        self._places: list[dict[Spelling, int | None]] = [{} for _ in range(NUM_SPELLINGS)]
        for place, video in enumerate(videos):
            for places, spelling in zip(self._places, _spellings(stem_of(video), wanted=True), strict=True):
                if spelling:
                    places[spelling] = None if spelling in places else place

    def find(self, name: str) -> tuple[int, int] | None:
        """The listed video that a file's name spells, and how well, 0 the best."""
        for number, spelling in enumerate(_spellings(stem_of(name), wanted=False)):
            place = self._places[number].get(spelling)
            if place is not None:
                return place, number
        return None


def _spellings(stem: str, wanted: bool) -> Iterator[Spelling]:
    """Ever looser spellings of a name, empty where it has none; ``wanted``: of a listed video, else of a file."""
    yield (stem,)
    timed = _TIMED.fullmatch(stem)
    start, end = (int(timed[2]), int(timed[3])) if timed else (0, 0)
    yield _number(stem) or (_plain(f"{timed[1]}_{start:06}_{end:06}" if timed else stem),)
    # a suffix on both sides is another part of the same film: never the third spelling
    if timed:
        yield ("timed", "listed" if wanted else "file", timed[1])
    else:
        yield ("timed", "file" if wanted else "listed", stem)
    letters = _letters(stem)
    yield (letters,) if letters else ()


def _plain(name: str) -> str:
    return _SPACES.sub("_", unicodedata.normalize("NFC", name).casefold()).strip("_")


def _number(stem: str) -> Spelling:
    """A name that is a number and nothing else, whatever zeros stand in front."""
    return ("number", stem.lstrip("0")) if stem.isascii() and stem.isdecimal() else ()


def _letters(name: str) -> str:
    marked = _NEW_NUMBER.sub(_MARK, unicodedata.normalize("NFC", name).casefold())
    return "".join(letter for letter in marked if letter.isalnum() or letter == _MARK)
