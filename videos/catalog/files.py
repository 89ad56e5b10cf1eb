"""Videos on disk: known extensions, names, order, search by name, and the identity of a file.

The identity is the size and modification time, and a hash of the content for cases of doubt.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from xxhash import xxh3_64

from ...files import open_regular
from ..annotations.segment import Span, file_and_span, split_name

_FILM_NAMES = (
    "mp4 webm avi mkv mov m4v mpg mpeg 3gp flv wmv gif mts m2ts m2t ts tp trp vob vro ogv ogm asf 3g2 f4v mxf gxf m1v "
    "m2v mpe mpv divx xvid dv dif rm rmvb qt mk3d mj2 mjpeg mjpg apng h261 h263 h264 h265 h266 hevc vvc avc ivf obu "
    "y4m nut wtv dvr-ms amv dav nuv mod tod flc fli ismv"
)
_FILM_EXTENSIONS = tuple(f".{name}" for name in _FILM_NAMES.split())
VIDEO_EXTENSIONS = (*_FILM_EXTENSIONS, ".zip")  # a zip file of frames
SHOWN_EXTENSIONS = f"{' '.join(_FILM_EXTENSIONS[:6])} .zip or {len(_FILM_EXTENSIONS) - 6} others that FFmpeg reads"
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
        return natural_order(
            entry.name for entry in entries if leads_to_folder(entry) and not entry.name.startswith(".")
        )


def leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Return True for a folder. A link that leads to itself is none, like one that leads nowhere."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False


def videos_in(folder: Path) -> list[str]:
    """Return the names of a folder's videos in natural order: files with a known extension and folders of frames."""
    with os.scandir(folder) as entries:
        return natural_order(entry.name for entry in entries if _is_video(entry))


def other_files(root: Path, folders: Iterable[str]) -> Counter[str]:
    """Return the number of files in folders that are not videos, by extension in lower case, without hidden files."""
    counts: Counter[str] = Counter()
    for folder in folders:
        with os.scandir(root / folder) as entries:
            names = (entry.name for entry in entries if not leads_to_folder(entry) and not _is_video(entry))
            counts.update(os.path.splitext(name)[1].lower() for name in names if not name.startswith("."))
    return counts


def stem_of(name: str) -> str:
    """Return a video's name without its extensions: ``a`` for ``a.mp4.webm``, but ``v1.2`` for ``v1.2``."""
    while name.lower().endswith(VIDEO_EXTENSIONS):
        name = name.rpartition(".")[0]
    return name


class VideoFinder:
    """A search for videos by name that lists each folder once. A segment is found if its file is."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: dict[str, _Folder] = {}

    def find(self, video: str) -> str | None:
        """Return the path relative to the root, or None if nothing has this name.

        The exact name wins. If nothing has it, an extension is added, then outer blanks are removed and backslashes
        are read as slashes.
        """
        found = next(filter(None, map(self._find, _spellings(video))), None)
        file, span = split_name(video)
        return found if found is not None or span is None else _with_span(self.find(file), span)

    def find_below(self, video: str) -> str | None:
        """Return the result of `find`, dropping leading folders until something has the name.

        Lists may contain the paths of their author's disk. To a name with an extension, another one is added only if
        no folder has the exact name.
        """
        file, span = split_name(video)
        if span is not None and self._find(video) is None:
            return _with_span(self.find_below(file), span)
        for spelling in _spellings(video):
            parts = spelling.split("/")
            paths = ["/".join(parts[start:]) for start in range(len(parts)) if parts[-1]]
            ways = [self._exact, self._extended] if spelling.lower().endswith(VIDEO_EXTENSIONS) else [self._find]
            found = next((path for way in ways for path in map(way, paths) if path is not None), None)
            if found is not None:
                return found
        return None

    def _find(self, video: str) -> str | None:
        return self._exact(video) or self._extended(video)

    def _exact(self, video: str) -> str | None:
        folder, name = self._folder_and_name(video)
        stem, dot, extension = name.rpartition(".")
        is_video = dot and extension in folder.extensions.get(stem, "").split("/")
        return video if is_video or name in folder.others else None

    def _extended(self, video: str) -> str | None:
        folder, name = self._folder_and_name(video)
        extension = folder.extensions.get(name)
        return None if extension is None else f"{video}.{extension.partition('/')[0]}"

    def _folder_and_name(self, video: str) -> tuple[_Folder, str]:
        path, slash, name = video.rpartition("/")
        if path not in self._folders:
            self._folders[path] = _Folder(self._root / (path + slash))
        return self._folders[path], name


def _with_span(file: str | None, span: Span) -> str | None:
    return None if file is None else file + span.fragment


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


def _spellings(video: str) -> tuple[str, ...]:
    """Return a listed name and, if it differs, the name that other programs would have written."""
    plain = video.strip().replace("\\", "/")
    return (video,) if plain == video else (video, plain)


def same_files(root: Path, videos: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of paths that lead to one file or folder: by links, ``./``, ``..`` or an absolute path.

    Each folder is listed once. The listing has the files' numbers, so only files with equal numbers are opened.
    """
    in_folder: dict[str, array[int]] = {}
    for index, video in enumerate(videos):
        in_folder.setdefault(video[: video.rfind("/") + 1], array("q")).append(index)
    numbers = np.zeros(len(videos), dtype=np.uint64)
    for folder, indices in in_folder.items():
        index_of = {videos[index][len(folder) :]: index for index in indices}
        with suppress(OSError), os.scandir(root / folder) as entries:
            for entry in entries:
                if entry.name in index_of:
                    numbers[index_of[entry.name]] = _file_number(entry)
    values, counts = np.unique(numbers, return_counts=True)
    first: dict[tuple[int, int], int] = {}
    pairs = []
    for index in np.flatnonzero(np.isin(numbers, values[(counts > 1) & (values > 0)])).tolist():
        with suppress(OSError):
            status = os.stat(root / videos[index])
            other = first.setdefault((status.st_dev, status.st_ino), index)
            if other != index:
                pairs.append((videos[other], videos[index]))
    return pairs


def _file_number(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_ino if entry.is_symlink() else entry.inode()
    except OSError:  # a link to nothing
        return 0


def _is_video(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith("."):
        return False
    if not leads_to_folder(entry):
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
    That of a segment is the stamp of its file.
    """
    path = file_and_span(path)[0]
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
    """Return a 64-bit hash of a file's bytes, or of the names and bytes of a folder's frames; 0 if unreadable.

    A segment has a hash of its file and its span. A pipe, a device or a socket is unreadable.
    """
    file, span = file_and_span(path)
    if span is not None:
        return _of_segment(_remembered_hash(file, stamp(file)), span)
    digest = blake2b(digest_size=8)
    try:
        for name in frame_files(Path(path)) if os.path.isdir(path) else [""]:
            digest.update(f"{len(name)} {name} ".encode("utf-8", "surrogateescape"))
            with open_regular(os.path.join(path, name) if name else path) as content:
                digest.update(_hash_file(content))
    except OSError:
        return 0
    return int.from_bytes(digest.digest(), "little")


def quick_hash(path: str | os.PathLike[str]) -> int:
    """Return a 64-bit xxHash of a file's bytes, or of the bytes of a folder's frames; 0 if unreadable.

    A segment has a hash of its file and its span. A pipe, a device or a socket is unreadable.
    """
    file, span = file_and_span(path)
    digest = xxh3_64()
    try:
        for name in frame_files(Path(file)) if os.path.isdir(file) else [""]:
            with open_regular(os.path.join(file, name) if name else file) as content:
                while chunk := content.read(BYTES_AT_ONCE):
                    digest.update(chunk)
    except OSError:
        return 0
    return digest.intdigest() if span is None else _of_segment(digest.intdigest(), span)


@lru_cache(maxsize=64)
def _remembered_hash(file: str, stamp: Stamp) -> int:
    """Return the `content_hash` of a file that many segments share."""
    return content_hash(file)


def _of_segment(of_file: int, span: Span) -> int:
    return xxh3_64(f"{of_file}{span.fragment}".encode()).intdigest() if of_file else 0


def _hash_file(file: BinaryIO) -> bytes:
    digest = blake2b()
    while chunk := file.read(BYTES_AT_ONCE):
        digest.update(chunk)
    return digest.digest()
