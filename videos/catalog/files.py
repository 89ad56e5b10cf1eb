"""Videos on disk: known extensions, names, order, search by name, and the identity of a file.

The identity is the size and modification time, and a hash of the content for cases of doubt.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, NamedTuple

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


BYTES_AT_ONCE = 2**20


class Stamp(NamedTuple):
    """Size in bytes and modification time in nanoseconds since 1970 (modulo 2^64); zeros for a missing video."""

    size: int
    time: int


def stamp(path: str | os.PathLike[str]) -> Stamp:
    """Return the stamp of a file or a folder of frames.

    The stamp of a folder has the total size of its frames and the latest modification time of the folder and frames.
    """
    try:
        status = os.stat(path)
        if not os.path.isdir(path):
            return Stamp(status.st_size, status.st_mtime_ns % 2**64)
        frames = [os.stat(os.path.join(path, name)) for name in frame_files(Path(path))]
    except OSError:
        return Stamp(0, 0)
    latest = max((frame.st_mtime_ns for frame in (status, *frames)), default=0)
    return Stamp(sum(frame.st_size for frame in frames), latest % 2**64)


def content_hash(path: str | os.PathLike[str]) -> int:
    """Return a 64-bit hash of a file's bytes, or of the names and bytes of a folder's frames; 0 if unreadable."""
    digest = blake2b(digest_size=8)
    try:
        for name in frame_files(Path(path)) if os.path.isdir(path) else [""]:
            digest.update(f"{len(name)} {name} ".encode("utf-8", "surrogateescape"))
            with open(os.path.join(path, name) if name else path, "rb") as file:
                digest.update(_hash_file(file))
    except OSError:
        return 0
    return int.from_bytes(digest.digest(), "little")


def _hash_file(file: BinaryIO) -> bytes:
    digest = blake2b()
    while chunk := file.read(BYTES_AT_ONCE):
        digest.update(chunk)
    return digest.digest()
