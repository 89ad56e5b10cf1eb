"""Videos stored as one image per frame, in a folder or a zip file."""

from __future__ import annotations

import io
import lzma
import os
import stat
import struct
import warnings
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import PIL.Image
from einops import repeat
from PIL import ExifTags
from torch import Tensor

from ...files import listed, open_regular
from ..catalog.files import FRAME_EXTENSIONS, frame_files
from .base import (
    HEAD_BYTES,
    MAX_PIXELS,
    Image,
    StaleFrameCountError,
    VideoError,
    VideoProbe,
    check_indices,
    check_pixels,
    content_reason,
    shown_reason,
    stack,
)
from .frame_names import frame_sequence

# Exceptions of Pillow, zipfile and the system for a file that they cannot read.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    PIL.Image.DecompressionBombError,
    struct.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    zlib.error,
)
# No image of MAX_PIXELS exceeds this, even if it does not compress at all.
_MAX_IMAGE_BYTES = 8 * MAX_PIXELS
EXIF_SHORT = 3
"""Type of an entry with 16-bit integers."""
# The operation that turns a stored image upright, by the orientation in its EXIF header.
_TRANSPOSE_OF_ORIENTATION = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}


class FrameImages(ABC):
    """Jpg or png frames in the order of their numbers. A frame that cannot be read ends the video.

    Args:
        path: the folder or zip file.
        names: names of all pictures, in any order.

    Raises:
        VideoError: there are no frames, or the pictures are several sequences.
    """

    def __init__(self, path: Path, names: list[str]) -> None:
        if not names:
            raise VideoError(path, f"a {self.kind} without jpg or png files")
        self.path = path
        self.damage: str | None = None
        try:
            self._names = frame_sequence(names)
        except ValueError as error:
            raise VideoError(path, str(error)) from error
        self.num_frames = len(self._names)

    kind: str

    @staticmethod
    def versions() -> dict[str, str]:
        """Return the version of Pillow (see `VideoDecoder`)."""
        return {"pillow": version("pillow")}

    @abstractmethod
    def opened(self) -> AbstractContextManager[Callable[[str], bytes]]:
        """Provide a function from a frame's name to its bytes, valid inside the context."""

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return frames by index (see `VideoDecoder`)."""
        check_indices(indices, self.num_frames)
        with self.opened() as load, _without_warnings():
            images = {index: self._load_image(load, index)[0] for index in sorted(set(indices))}
        return stack(self.path, indices, images)

    def probe(self) -> VideoProbe:
        """Decode all frames and return what was found.

        Raises:
            VideoError: the first frame cannot be read, or the frames differ in size or orientation.
        """
        example: dict[tuple[int, int, int], str] = {}
        with self.opened() as load, _without_warnings():
            for index in range(self.num_frames):
                try:
                    image, orientation = self._load_image(load, index)
                except StaleFrameCountError:
                    break
                example.setdefault((*image.shape[:2], orientation), self._names[index])
        if len(example) > 1:
            texts = [f"{name} is {w} x {h}, orientation {turn}" for (h, w, turn), name in example.items()]
            raise VideoError(self.path, f"its frames differ in size or EXIF orientation: {listed(texts)}")
        height, width, _ = next(iter(example))
        codec = "png" if self._names[0].lower().endswith(".png") else "jpeg"
        return VideoProbe(self.num_frames, codec, width, height, 0, self.damage)

    def _load_image(self, load: Callable[[str], bytes], index: int) -> tuple[Image, int]:
        """Return an upright frame, and the EXIF orientation in which it is stored."""
        name = self._names[index]
        data = b""
        try:
            data = load(name)
            with PIL.Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
                check_pixels(self.path, *image.size)
                orientation = _orientation(image)
                turn = _TRANSPOSE_OF_ORIENTATION.get(orientation)
                return _to_rgb(image if turn is None else image.transpose(turn)), orientation
        except VideoError:
            raise
        except _UNREADABLE as error:
            reason = shown_reason(error)
            if isinstance(error, PIL.UnidentifiedImageError):
                reason = content_reason(data[:HEAD_BYTES], "no jpg or png image")
            self.damage = f"frame {name}: {reason}"
            if index == 0:
                raise VideoError(self.path, self.damage) from error
            self.num_frames = index
            raise StaleFrameCountError(self.path, self.damage) from error


class FrameFolder(FrameImages):
    """A video in a folder of frames."""

    kind = "folder"

    def __init__(self, path: Path) -> None:
        try:
            names = frame_files(path)
        except OSError as error:
            raise VideoError(path, shown_reason(error)) from error
        super().__init__(path, names)

    @contextmanager
    def opened(self) -> Iterator[Callable[[str], bytes]]:
        """Provide the bytes of the files by name (see `FrameImages`)."""

        def load(name: str) -> bytes:
            with open_regular(self.path / name) as file:
                if os.fstat(file.fileno()).st_size > _MAX_IMAGE_BYTES:
                    raise ValueError(f"more than {_MAX_IMAGE_BYTES:,} bytes")
                return file.read()

        yield load


class FrameZip(FrameImages):
    """A video in a zip file of frames, which are in its root or in numbered folders."""

    kind = "zip file"

    def __init__(self, path: Path) -> None:
        try:
            with open_regular(path) as file, zipfile.ZipFile(file) as archive:
                names = [name for name in archive.namelist() if _is_frame(name)]
        except _UNREADABLE as error:
            raise VideoError(path, shown_reason(error)) from error
        super().__init__(path, names)

    @contextmanager
    def opened(self) -> Iterator[Callable[[str], bytes]]:
        """Provide the bytes of the zip members by name (see `FrameImages`)."""
        with ExitStack() as files:
            try:
                file = files.enter_context(open_regular(self.path))
                archive = files.enter_context(zipfile.ZipFile(file))
            except _UNREADABLE as error:
                raise VideoError(self.path, shown_reason(error)) from error

            def load(name: str) -> bytes:
                if archive.getinfo(name).file_size > _MAX_IMAGE_BYTES:
                    raise ValueError(f"more than {_MAX_IMAGE_BYTES:,} bytes")
                return archive.read(name)

            yield load


def open_images(path: Path) -> FrameFolder | FrameZip | None:
    """Return the reader of a folder or zip file of frames, or None for any other file.

    Raises:
        VideoError: the path does not exist, or has no frames.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        raise VideoError(path, "no such file or folder") from error
    except (OSError, ValueError) as error:
        raise VideoError(path, shown_reason(error)) from error
    if stat.S_ISDIR(mode):
        return FrameFolder(path)
    return FrameZip(path) if path.suffix.lower() == ".zip" else None


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppress warnings of Pillow about damaged headers, of which only the orientation matters here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _orientation(image: PIL.Image.Image) -> int:
    """Return the orientation in the EXIF header, or 1 (upright) if the header has none, as image viewers do."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        if orientation is None:
            orientation = _orientation_entry(image.info.get("exif", b""))
    except _UNREADABLE:
        return 1
    return orientation if isinstance(orientation, int) and orientation in _TRANSPOSE_OF_ORIENTATION else 1


def _orientation_entry(header: bytes) -> int | None:
    """Return the orientation in a damaged EXIF header. Pillow before 13 stops at the first damaged entry."""
    tiff = header.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return None
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    for entry in range(count):
        tag, kind, number, value = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * entry)
        if tag == ExifTags.Base.Orientation:
            return value if (kind, number) == (EXIF_SHORT, 1) else None
    return None


def _to_rgb(image: PIL.Image.Image) -> Image:
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow would clip at 255
        gray = (np.asarray(image) >> 8).astype(np.uint8)
        return repeat(gray, "h w -> h w c", c=3)
    return np.asarray(image.convert("RGB"))


def _is_frame(name: str) -> bool:
    base = name.rpartition("/")[2]
    return base.lower().endswith(FRAME_EXTENSIONS) and not base.startswith(".")
