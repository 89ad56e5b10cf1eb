"""The protocol of all decoders, their errors and limit on pixels, and the RGB picture that a player would show."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from ...errors import DmgalError

MAX_PIXELS = 7680 * 4320
"""Maximum number of pixels per frame (8K UHD), because a few bytes can request any amount of memory."""

HEAD_BYTES = 256
"""Number of bytes that suffice to distinguish text from a video."""
TORN_BYTES = 6  # a byte order mark at the start, and a character cut off at the end
SHOWN_TEXT = 60

Image = NDArray[np.uint8]
"""One frame, RGB ``(H, W, 3)``."""


class VideoError(DmgalError):
    """A video that cannot be read.

    Args:
        path: the file or folder.
        reason: the problem with it. Without a reason, ``path`` is the whole message (see ``DmgalError``).
    """

    def __init__(self, path: str | os.PathLike[str], reason: str | None = None) -> None:
        if reason is None:
            super().__init__(str(path))
            return
        super().__init__(
            f"Cannot read the video {os.fspath(path)}.",
            received=reason,
            expected="a video file that FFmpeg decodes, or a folder or zip file of jpg or png frames: one "
            f"numbered sequence of one size, of at most {MAX_PIXELS:,} pixels each",
            remedy="Replace the video. 'dmgal prepare' finds all such videos. --data.on-bad-video skip excludes them.",
        )


class StaleFrameCountError(VideoError):
    """A frame count that decoding disproved. ``num_frames`` is correct now, so the caller must choose again."""


class OpenVideo(Protocol):
    """An open video. ``damage`` is the reason why only its beginning can be used, or None."""

    num_frames: int
    damage: str | None

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return frames by index, uint8 RGB ``(T, 3, H, W)``, upright, with square pixels.

        The indices may be in any order and repeat.

        Raises:
            IndexError: an index outside ``[0, num_frames)``.
            StaleFrameCountError: ``num_frames`` was wrong and is corrected now.
            VideoError: a frame cannot be read, or the frames differ in size.
        """
        ...


class VideoDecoder(OpenVideo, Protocol):
    """An open video of a path.

    To add a decoder, add a module ``NAME_video.py`` and its name in ``video.DecoderName``. The module's ``Decoder`` is
    a class that implements this protocol.
    """

    def __init__(self, path: Path, threads: int = 1) -> None: ...

    @staticmethod
    def versions() -> dict[str, str]:
        """Return the versions of the packages and libraries that affect the frames, by name."""
        ...


@dataclass(frozen=True)
class VideoProbe:
    """Properties of a video, found by decoding all of it.

    Attributes:
        num_frames: number of frames that decode, at least 1.
        codec: FFmpeg's name of the codec, such as ``h264``. For a folder or zip file of frames ``jpeg`` or ``png``.
        width, height: of the frames as they are read (upright, with square pixels), in pixels.
        rotation: counterclockwise rotation that turns the stored frames upright, in degrees.
        problem: the reason why only the first ``num_frames`` frames can be used, or None.
    """

    num_frames: int
    codec: str
    width: int
    height: int
    rotation: int
    problem: str | None


def shown_reason(error: Exception) -> str:
    """Return the message of an error, without the number and path of system errors."""
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def content_reason(head: bytes, otherwise: str) -> str:
    """Return the reason why a file that begins with ``head`` cannot be read, often a failed download.

    Args:
        head: the first few hundred bytes of the file.
        otherwise: the result if the bytes do not show a reason.
    """
    if not head:
        return "it is empty"
    text = head.decode("utf-8-sig", "ignore")
    if len(text.encode()) < len(head) - TORN_BYTES or not all(c.isprintable() or c.isspace() for c in text):
        return otherwise
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return f"it is text, which begins with {line[:SHOWN_TEXT]!r}"


def check_indices(indices: Sequence[int], num_frames: int) -> None:
    """Raise IndexError if there are no indices or one is outside ``[0, num_frames)``."""
    if not indices:
        raise IndexError("no frame index was given")
    if min(indices) < 0 or max(indices) >= num_frames:
        raise IndexError(f"frame indices {min(indices)} to {max(indices)} of a video of {num_frames} frames")


def check_pixels(path: Path, width: int, height: int) -> None:
    """Raise VideoError if a frame of ``width`` by ``height`` pixels exceeds `MAX_PIXELS`."""
    if width * height > MAX_PIXELS:
        raise VideoError(path, f"frames of {width} x {height} pixels, more than the limit of {MAX_PIXELS:,} pixels")


def stack(path: Path, indices: Sequence[int], images: Mapping[int, Image]) -> Tensor:
    """Return the images at ``indices`` as one clip, uint8 ``(T, 3, H, W)``.

    Raises:
        VideoError: the images differ in size.
    """
    sizes = sorted({image.shape[:2] for image in images.values()})
    if len(sizes) > 1:
        raise VideoError(path, f"its frames differ in size (height, width): {', '.join(map(str, sizes))}")
    clip = torch.empty((len(indices), 3, *sizes[0]), dtype=torch.uint8)
    for frame, index in zip(clip.numpy(), indices, strict=True):
        np.copyto(frame, rearrange(images[index], "h w c -> c h w"))
    return clip


# Real pixels are never this anamorphic. A header with a larger ratio is damaged.
MOST_ANAMORPHIC = 8


def shown_size(width: int, height: int, aspect: Fraction | None) -> tuple[int, int]:
    """Return width and height with square pixels. The coarser side grows, so that no pixel is lost.

    Args:
        width, height: of the stored frame.
        aspect: width over height of one stored pixel. None, 0 and implausible values count as 1.
    """
    if not aspect or not Fraction(1, MOST_ANAMORPHIC) <= aspect <= MOST_ANAMORPHIC:
        return width, height
    if aspect > 1:
        return round(width * aspect), height
    return width, round(height / aspect)


class UprightRGB:
    """Converter of the frames of one video.

    Args:
        path: of the video, for error messages.
        aspect: width over height of one stored pixel, or None.
    """

    def __init__(self, path: Path, aspect: Fraction | None) -> None:
        self.path = path
        self.aspect = aspect
        self._reformatter = VideoReformatter()  # reused, because it sets itself up for one kind of frame

    def __call__(self, frame: av.VideoFrame) -> Image:
        """Return a frame as RGB ``(H, W, 3)``.

        Raises:
            VideoError: the frame has too many pixels.
        """
        width, height = shown_size(frame.width, frame.height, self.aspect)
        check_pixels(self.path, width, height)
        image: Any = self._reformatter.reformat(frame, width, height, format="rgb24", threads=1).to_ndarray()
        try:
            matrix: Any = frame.side_data.get("DISPLAYMATRIX")
        except ValueError:  # PyAV does not know all kinds of FFmpeg, such as EXIF
            return np.rot90(image, quarter_turns(frame))
        return turn_upright(image, None if matrix is None else bytes(matrix))


def turn_upright(image: Image, matrix: bytes | None) -> Image:
    """Return the image as the display matrix shows it, turned by quarters and mirrored.

    Args:
        image: as stored.
        matrix: nine int32; maps the pixel ``(x, y)`` to ``(a x + c y, b x + d y)``. None shows the image as stored.
    """
    if matrix is None:
        return image
    a, b, _, c, d = struct.unpack_from("=5i", matrix)
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return image.swapaxes(0, 1)[:: -1 if b < 0 else 1, :: -1 if c < 0 else 1]


def quarter_turns(frame: av.VideoFrame) -> int:
    """Return the number of counterclockwise quarter turns that turn the frame upright, except for mirroring."""
    return round(frame.rotation / 90) % 4
