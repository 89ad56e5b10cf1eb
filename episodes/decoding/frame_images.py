"""Videos that are stored as one image per frame: a folder, or a zip file."""

from __future__ import annotations

import io
import lzma
import os
import struct
import warnings
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import PIL.Image
from PIL import ExifTags
from torch import Tensor

from ..catalogs.video_files import FRAME_EXTENSIONS, frame_files, natural_key
from .video_decoder import (
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

# What Pillow, zipfile and the system raise about a file they cannot read.
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
# No image of MAX_PIXELS takes more than this, however badly it compresses.
_MAX_IMAGE_BYTES = 8 * MAX_PIXELS
# What turns a stored image upright, by the orientation that its EXIF header tells.
_UPRIGHT = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}


class FrameImages(ABC):
    """Jpg or png frames, in natural order of their names. A frame that cannot be read ends the video.

    Args:
        path: the folder or zip file.
        names: the frames' names in order.

    Raises:
        VideoError: there are none.
    """

    def __init__(self, path: Path, names: list[str]) -> None:
        if not names:
            raise VideoError(path, f"a {self.kind} without jpg or png files")
        self.path = path
        self.damage: str | None = None
        self._names = names
        self.num_frames = len(names)

    kind: str

    @staticmethod
    def versions() -> dict[str, str]:
        """See `VideoDecoder`."""
        return {"pillow": version("pillow")}

    @abstractmethod
    def opened(self) -> AbstractContextManager[Callable[[str], bytes]]:
        """The function from a frame's name to its bytes, while the context lasts."""

    def read(self, indices: Sequence[int]) -> Tensor:
        """See `VideoDecoder`."""
        check_indices(indices, self.num_frames)
        with self.opened() as load, _without_warnings():
            images = {index: self._image(load, index) for index in sorted(set(indices))}
        return stack(self.path, indices, images)

    def probe(self) -> VideoProbe:
        """What decoding every frame shows."""
        with self.opened() as load, _without_warnings():
            first = self._image(load, 0)
            for index in range(1, self.num_frames):
                try:
                    self._image(load, index)
                except StaleFrameCountError:
                    break
        height, width = first.shape[:2]
        codec = "png" if self._names[0].lower().endswith(".png") else "jpeg"
        return VideoProbe(self.num_frames, codec, width, height, 0, self.damage)

    def _image(self, load: Callable[[str], bytes], index: int) -> Image:
        name, data = self._names[index], b""
        try:
            data = load(name)
            with PIL.Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
                check_pixels(self.path, *image.size)
                return _rgb(_upright(image))
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
    """A folder of frames."""

    kind = "folder"

    def __init__(self, path: Path) -> None:
        try:
            names = frame_files(path)
        except OSError as error:
            raise VideoError(path, shown_reason(error)) from error
        super().__init__(path, names)

    @contextmanager
    def opened(self) -> Iterator[Callable[[str], bytes]]:
        """See `FrameImages`."""

        def load(name: str) -> bytes:
            with open(self.path / name, "rb") as file:
                if os.fstat(file.fileno()).st_size > _MAX_IMAGE_BYTES:
                    raise ValueError(f"more than {_MAX_IMAGE_BYTES:,} bytes")
                return file.read()

        yield load


class FrameZip(FrameImages):
    """A zip file of frames, in its root or in folders, which are taken in natural order."""

    kind = "zip file"

    def __init__(self, path: Path) -> None:
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if _is_frame(name)]
        except _UNREADABLE as error:
            raise VideoError(path, shown_reason(error)) from error
        super().__init__(path, sorted(names, key=lambda name: [natural_key(part) for part in name.split("/")]))

    @contextmanager
    def opened(self) -> Iterator[Callable[[str], bytes]]:
        """See `FrameImages`."""
        try:
            archive = zipfile.ZipFile(self.path)
        except _UNREADABLE as error:
            raise VideoError(self.path, shown_reason(error)) from error
        with archive:

            def load(name: str) -> bytes:
                if archive.getinfo(name).file_size > _MAX_IMAGE_BYTES:
                    raise ValueError(f"more than {_MAX_IMAGE_BYTES:,} bytes")
                return archive.read(name)

            yield load


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Pillow warns of each header that is damaged, thousands in a data set; what matters of one is the orientation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """As its EXIF header says; as it is stored where that is damaged, as viewers do."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except _UNREADABLE:
        return image
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _rgb(image: PIL.Image.Image) -> Image:
    if image.mode.startswith("I"):  # 16 bits of gray, of which Pillow would clip what is brighter than 255
        gray = (np.asarray(image) >> 8).astype(np.uint8)
        return np.stack([gray] * 3, axis=-1)  # (H, W, 3)
    return np.asarray(image.convert("RGB"))


def _is_frame(name: str) -> bool:
    base = name.rpartition("/")[2]
    return base.lower().endswith(FRAME_EXTENSIONS) and not base.startswith(".")
