"""Videos on disk: known extensions, names, order, and search by name."""

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
    """Return a sort key that puts ``frame9`` before ``frame10``. The name itself breaks ties such as ``01``, ``1``."""
    parts = _DIGITS.split(name)  # text at even indices, digits at odd ones
    # A number sorts before text, and its length counts before its digits. A single string compares fastest.
    parts[1::2] = [f"\1{chr(len(digits))}{digits}" for digits in (part.lstrip("0") for part in parts[1::2])]
    return f"{''.join(parts)}\0{name}"


def natural_order(names: Iterable[str]) -> list[str]:
    """Return the names sorted by `natural_key`."""
    names = list(names)
    pattern = names[0].translate(_DIGITS_AS_ZEROS) if names else ""
    if pattern.isascii() and all(name.translate(_DIGITS_AS_ZEROS) == pattern for name in names):
        return sorted(names)  # digits at the same positions: the same order, ten times as fast
    return sorted(names, key=natural_key)


def frame_files(folder: Path) -> list[str]:
    """Return the names of the frames in a folder, in natural order, without hidden files.

    Raises:
        OSError: the folder cannot be listed.
    """
    names = (name for name in os.listdir(folder) if name.lower().endswith(FRAME_EXTENSIONS))
    return natural_order(name for name in names if not name.startswith("."))


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, in natural order, without hidden folders."""
    with os.scandir(folder) as entries:
        return natural_order(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def videos_in(folder: Path) -> list[str]:
    """Return the names of a folder's videos in natural order: files with a known extension and folders of frames."""
    with os.scandir(folder) as entries:
        return natural_order(entry.name for entry in entries if _is_video(entry))


def stem_of(name: str) -> str:
    """Return a video's name without its extensions: ``a`` for ``a.mp4.webm``, but ``v1.2`` for ``v1.2``."""
    while name.lower().endswith(VIDEO_EXTENSIONS):
        name = name.rpartition(".")[0]
    return name


class VideoFinder:
    """A search for videos by name that lists each folder once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: dict[str, _Folder] = {}

    def find(self, video: str) -> str | None:
        """Return the path relative to the root, with an extension added if needed, or None if nothing has this name."""
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
        """Return the result of `find`, dropping leading folders until something has the name.

        Lists may contain the paths of their author's disk.
        """
        path = self.find(video)
        while path is None and "/" in video:
            video = video.partition("/")[2]
            path = self.find(video) if video else None
        return path


class _Folder:
    """The contents of a folder: the sorted extensions of its videos by stem, ``avi/mp4``, and all other names."""

    def __init__(self, path: Path) -> None:
        self.extensions: dict[str, str] = {}
        self.others: set[str] = set()
        try:
            names = os.listdir(path)
        except (OSError, ValueError):  # a null byte in the path raises ValueError
            return
        for name in names:
            stem, _, extension = name.rpartition(".")
            if not stem or f".{extension.lower()}" not in VIDEO_EXTENSIONS:
                self.others.add(name)
            elif stem in self.extensions:
                self.extensions[stem] = "/".join(sorted([*self.extensions[stem].split("/"), extension]))
            else:
                self.extensions[stem] = sys.intern(extension)  # one string object for all equal extensions


def _is_video(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith("."):
        return False
    if not entry.is_dir():
        return entry.name.lower().endswith(VIDEO_EXTENSIONS)
    with os.scandir(entry.path) as frames:
        return any(frame.name.lower().endswith(FRAME_EXTENSIONS) and frame.name[0] != "." for frame in frames)
