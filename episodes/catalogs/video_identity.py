"""The identity of a video file: size and modification time, and a hash of the content for cases of doubt."""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .video_files import frame_files

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
