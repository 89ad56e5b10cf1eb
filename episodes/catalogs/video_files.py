"""What counts as a video on a disk, and how the videos of a folder are named and ordered."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

_FILM_EXTENSIONS = (".mp4", ".webm", ".avi", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".3gp", ".flv", ".wmv", ".gif")
VIDEO_EXTENSIONS = (*_FILM_EXTENSIONS, ".zip")  # a zip file of frames
FRAME_EXTENSIONS = (".jpg", ".jpeg", ".png")
_DIGITS = re.compile("([0-9]+)")
_DIGITS_AS_ZEROS = str.maketrans("123456789", "000000000")


def natural_key(name: str) -> str:
    """Sort key that puts ``frame9`` before ``frame10``; the name itself decides between ``frame1`` and ``frame01``."""
    parts = _DIGITS.split(name)  # text at even places, digits at odd ones
    # a number comes before text, and its length decides before its digits; one string compares fastest
    parts[1::2] = [f"\1{chr(len(digits))}{digits}" for digits in (part.lstrip("0") for part in parts[1::2])]
    return f"{''.join(parts)}\0{name}"


def natural_order(names: Iterable[str]) -> list[str]:
    """Names sorted by `natural_key`."""
    names = list(names)
    form = names[0].translate(_DIGITS_AS_ZEROS) if names else ""
    if form.isascii() and all(name.translate(_DIGITS_AS_ZEROS) == form for name in names):
        return sorted(names)  # alike but for digits at the same places: the same order, ten times as fast
    return sorted(names, key=natural_key)


def frame_files(folder: Path) -> list[str]:
    """Names of the frames in a folder, in natural order; hidden files are none. OSError where it cannot be listed."""
    names = (name for name in os.listdir(folder) if name.lower().endswith(FRAME_EXTENSIONS))
    return natural_order(name for name in names if not name.startswith("."))


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, in natural order, hidden ones left out."""
    with os.scandir(folder) as entries:
        return natural_order(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def videos_in(folder: Path) -> list[str]:
    """Names of the videos in a folder, in natural order: files with a known extension and folders with frames."""
    with os.scandir(folder) as entries:
        return natural_order(entry.name for entry in entries if _is_video(entry))


def stem_of(name: str) -> str:
    """A video's name without its extensions: ``a`` for ``a.mp4.webm``, but ``v1.2`` for ``v1.2``."""
    while name.lower().endswith(VIDEO_EXTENSIONS):
        name = name.rpartition(".")[0]
    return name


class VideoFinder:
    """Finds videos by name with one look into each folder, however many videos there are."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: dict[str, _Folder] = {}

    def find(self, video: str) -> str | None:
        """The path relative to the root, an extension added where needed; None where nothing has this name."""
        path, slash, name = video.rpartition("/")
        folder = self._folders.get(path)
        if folder is None:
            folder = self._folders[path] = _Folder(self._root / (path + slash))
        if name in folder.others:
            return video
        extension = folder.extensions.get(name)
        if extension is not None:
            return f"{video}.{extension.partition('/')[0]}"
        stem, dot, extension = name.rpartition(".")
        return video if dot and extension in folder.extensions.get(stem, "").split("/") else None

    def find_below(self, video: str) -> str | None:
        """As `find`; where nothing has this name, leading folders are dropped: lists may tell their author's disk."""
        found = self.find(video)
        while found is None and "/" in video:
            video = video.partition("/")[2]
            found = self.find(video) if video else None
        return found


class _Folder:
    """What lies in a folder: the extensions of its videos by stem, in order, ``avi/mp4``; and all other names."""

    def __init__(self, path: Path) -> None:
        self.extensions: dict[str, str] = {}
        self.others: set[str] = set()
        try:
            names = os.listdir(path)
        except (OSError, ValueError):  # ValueError: a null byte, which no name on a disk has
            return
        for name in names:
            stem, _, extension = name.rpartition(".")
            if not stem or f".{extension.lower()}" not in VIDEO_EXTENSIONS:
                self.others.add(name)
            elif stem in self.extensions:
                self.extensions[stem] = "/".join(sorted([*self.extensions[stem].split("/"), extension]))
            else:
                self.extensions[stem] = sys.intern(extension)  # one string instead of a million equal ones


def _is_video(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith("."):
        return False
    if not entry.is_dir():
        return entry.name.lower().endswith(VIDEO_EXTENSIONS)
    with os.scandir(entry.path) as frames:
        return any(frame.name.lower().endswith(FRAME_EXTENSIONS) and frame.name[0] != "." for frame in frames)
