"""A search for the videos of a split in a download with any folder layout, by the names of the videos.

A file or a folder of frames matches a listed video if its name without extensions meets one of these, best first:
1. It equals the listed name.
2. It differs only in case, form of accents, or spaces, underscores and hyphens. Leading zeros may also differ in a
   name that is a number, or in a Kinetics time suffix.
3. It lacks a Kinetics time suffix such as ``_000010_000020``, or has one that the listed name lacks.
4. It has the same letters and numbers in the same order. Two numbers stay two, so ``11035_1`` is not ``110351``, and
   ``a (1)``, a second copy of ``a``, is not ``a1``.
A spelling matches only if it belongs to exactly one listed video, and a file matches at most one video. If several
files match a video, the better spelling wins. Ties are broken by a folder named like the class, a file before frames,
and path order. The disk is walked once, and memory grows with the list and the number of folders, not of files.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .files import FRAME_EXTENSIONS, VIDEO_EXTENSIONS, leads_to_folder, stem_of

_TIMED = re.compile(r"(.{11})_(\d{1,6})_(\d{1,6})", re.DOTALL)  # YouTube's 11 characters, start and end in seconds
_SPACES = re.compile(r"[\s_-]+")
_NEW_NUMBER = re.compile(r"(?<=\d)[\W_]+(?=\d)|[\W_]*\((?=\d+\)$)")
_MARK = "\0"  # separates a number from preceding characters; no name on disk contains it
NUM_SPELLINGS = 4

Spelling = tuple[str, ...]


@dataclass
class Matches:
    """The result of a search for a split's videos.

    Attributes:
        paths: path of each listed video, relative to the root with forward slashes; None if it was not found.
        num_several: number of listed videos that several files match.
        num_other: number of videos on disk that are not listed.
        examples: names of up to three videos that are not listed.
        closed_folders: folders that could not be listed.
    """

    paths: list[str | None]
    num_several: int = 0
    num_other: int = 0
    examples: list[str] = field(default_factory=list)
    closed_folders: list[str] = field(default_factory=list)


@dataclass(frozen=True, order=True)
class _Candidate:
    """A file that matches a listed video. The smallest candidate is the best."""

    spelling: int
    elsewhere: bool
    is_folder: bool
    path: str


def match_videos(listed: Sequence[tuple[str, str]], root: Path) -> Matches:
    """Look for listed videos below a folder.

    Args:
        listed: ``(class name, video)`` of each; the names of the videos differ.
        root: the folder; links are followed, hidden names are ignored.
    """
    index = _SpellingIndex([video for _, video in listed])
    classes = [_letters(name) for name, _ in listed]
    best: list[_Candidate | None] = [None] * len(listed)
    with_several: set[int] = set()
    matches = Matches([])
    for path, is_folder in videos_below(root, matches.closed_folders):
        folder, _, name = path.rpartition("/")
        match = index.find(name)
        if match is None:
            matches.num_other += 1
            if len(matches.examples) < 3:
                matches.examples.append(path)
            continue
        video, spelling = match
        in_class_folder = classes[video] in map(_letters, folder.split("/"))
        candidate = _Candidate(spelling, not in_class_folder, is_folder, path)
        previous = best[video]
        if previous is None:
            best[video] = candidate
        else:
            with_several.add(video)
            best[video] = min(previous, candidate)
    matches.paths = [None if candidate is None else candidate.path for candidate in best]
    matches.num_several = len(with_several)
    return matches


def videos_below(root: Path, closed_folders: list[str]) -> Iterator[tuple[str, bool]]:
    """Yield every video below a folder as ``(relative path, True for a folder of frames)``, in arbitrary order.

    Links are followed, and each folder is entered once.

    Args:
        root: the folder.
        closed_folders: list that receives the folders that cannot be listed.
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
    """Yield the videos directly in a folder, and the folder itself if it has frames.

    The subfolders are added to ``waiting``.
    """
    below, has_frames = [], False
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = f"{folder}/{entry.name}" if folder else entry.name
            name = entry.name.lower()
            if name.endswith(FRAME_EXTENSIONS):
                has_frames = True
            elif leads_to_folder(entry):
                below.append(path)
            elif name.endswith(VIDEO_EXTENSIONS):
                yield path, False
    if has_frames and folder:
        yield folder, True
    waiting += sorted(below, reverse=True)


class _SpellingIndex:
    """Indices of the listed videos by each of their spellings that no other listed video has."""

    def __init__(self, videos: Sequence[str]) -> None:
        self._video_of: list[dict[Spelling, int | None]] = [{} for _ in range(NUM_SPELLINGS)]
        for index, video in enumerate(videos):
            for video_of, spelling in zip(self._video_of, _spellings(stem_of(video), is_listed=True), strict=True):
                if spelling:
                    video_of[spelling] = None if spelling in video_of else index

    def find(self, name: str) -> tuple[int, int] | None:
        """Return the listed video that a file name spells and the number of the spelling, 0 for the best."""
        for number, spelling in enumerate(_spellings(stem_of(name), is_listed=False)):
            video = self._video_of[number].get(spelling)
            if video is not None:
                return video, number
        return None


def _spellings(stem: str, is_listed: bool) -> Iterator[Spelling]:
    """Yield the ``NUM_SPELLINGS`` spellings of a name from strict to loose, empty if a spelling does not apply.

    Args:
        stem: the name without extensions.
        is_listed: True for a listed video, False for a file.
    """
    yield (stem,)
    timed = _TIMED.fullmatch(stem)
    start, end = (int(timed[2]), int(timed[3])) if timed else (0, 0)
    yield _number(stem) or (_plain(f"{timed[1]}_{start:06}_{end:06}" if timed else stem),)
    # Two names with different suffixes are parts of the same film, so they must not share the third spelling.
    if timed:
        yield ("timed", "listed" if is_listed else "file", timed[1])
    else:
        yield ("timed", "file" if is_listed else "listed", stem)
    letters = _letters(stem)
    yield (letters,) if letters else ()


def _plain(name: str) -> str:
    return _SPACES.sub("_", unicodedata.normalize("NFC", name).casefold()).strip("_")


def _number(stem: str) -> Spelling:
    """Return the spelling of a name that is a number, without leading zeros, or an empty one for other names."""
    return ("number", stem.lstrip("0")) if stem.isascii() and stem.isdecimal() else ()


def _letters(name: str) -> str:
    marked = _NEW_NUMBER.sub(_MARK, unicodedata.normalize("NFC", name).casefold())
    return "".join(letter for letter in marked if letter.isalnum() or letter == _MARK)
