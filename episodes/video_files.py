"""What counts as a video on a disk, and how the videos of a folder are named and ordered."""

from __future__ import annotations

import os
import re
from pathlib import Path

VIDEO_EXTENSIONS = (".mp4", ".webm", ".avi", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".3gp", ".flv", ".wmv", ".gif")
FRAME_EXTENSIONS = (".jpg", ".jpeg", ".png")


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key that puts ``frame9`` before ``frame10``; the name itself decides between ``frame1`` and ``frame01``."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts] + [(-2, name)]


def frame_files(folder: Path) -> list[str]:
    """Names of the frames in a folder, in natural order; hidden files are none. OSError where it cannot be listed."""
    names = (name for name in os.listdir(folder) if name.lower().endswith(FRAME_EXTENSIONS))
    return sorted((name for name in names if not name.startswith(".")), key=natural_key)


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, in natural order, hidden ones left out."""
    with os.scandir(folder) as entries:
        return sorted((e.name for e in entries if e.is_dir() and not e.name.startswith(".")), key=natural_key)


def videos_in(folder: Path) -> list[str]:
    """Names of the videos in a folder, in natural order: files with a known extension and folders with frames."""
    with os.scandir(folder) as entries:
        return sorted((entry.name for entry in entries if _is_video(entry)), key=natural_key)


class VideoFinder:
    """Finds videos by name with one look into each folder, however many videos there are."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, tuple[set[str], dict[str, str]]] = {}

    def find(self, video: str) -> str | None:
        """The path relative to the root, an extension added where needed; None where nothing has this name."""
        folder, slash, name = video.rpartition("/")
        if folder not in self._known:
            self._known[folder] = self._look_into(folder + slash)
        names, by_stem = self._known[folder]
        if name in names:
            return video
        return folder + slash + by_stem[name] if name in by_stem else None

    def _look_into(self, folder: str) -> tuple[set[str], dict[str, str]]:
        try:
            names = set(os.listdir(self._root / folder))
        except OSError:
            return set(), {}
        # sorted backward, so that of two files with one stem the first in the alphabet stays
        files = (name for name in sorted(names, reverse=True) if name.lower().endswith(VIDEO_EXTENSIONS))
        return names, {name.rpartition(".")[0]: name for name in files}


def _is_video(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith("."):
        return False
    if not entry.is_dir():
        return entry.name.lower().endswith(VIDEO_EXTENSIONS)
    with os.scandir(entry.path) as frames:
        return any(frame.name.lower().endswith(FRAME_EXTENSIONS) and frame.name[0] != "." for frame in frames)
