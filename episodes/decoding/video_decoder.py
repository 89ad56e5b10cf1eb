"""What every decoder shares: its protocol, its errors, the limit on pixels, and the form in which frames come out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import DmgalError

MAX_PIXELS = 7680 * 4320
"""A frame of more pixels (8K UHD) is refused: a few bytes can ask for any amount of memory."""

HEAD_BYTES = 256
"""Of a file that cannot be read, enough to tell text from a video."""
TORN_BYTES = 6  # a byte order mark in front, and a letter that the end of the head tears
SHOWN_TEXT = 60

Image = NDArray[np.uint8]
"""One frame, RGB ``(H, W, 3)``."""


class VideoError(DmgalError):
    """A video that cannot be read.

    Args:
        path: the file or folder.
        reason: what is wrong with it; left out, the first is the whole message (see ``DmgalError``).
    """

    def __init__(self, path: str | os.PathLike[str], reason: str | None = None) -> None:
        if reason is None:
            super().__init__(str(path))
            return
        super().__init__(
            f"cannot read the video {os.fspath(path)}",
            received=reason,
            expected="a video file that FFmpeg decodes, or a folder or zip file of jpg or png frames of one size, "
            f"of at most {MAX_PIXELS:,} pixels each",
            remedy="replace the video; 'dmgal prepare' finds all such videos, --data.on-bad-video skip leaves them out",
        )


class StaleFrameCountError(VideoError):
    """Decoding showed another number of frames than was counted; ``num_frames`` is right now, so choose again."""


class VideoDecoder(Protocol):
    """An open video. ``damage`` is the reason why only its beginning can be used, or None.

    A further decoder is one file, ``NAME_video.py``, whose ``Decoder`` is a class of this form that is made from a path
    and a number of threads, and its name in ``video.DecoderName``.
    """

    num_frames: int
    damage: str | None

    @staticmethod
    def versions() -> dict[str, str]:
        """Of the packages and libraries that shape its frames, by their names."""
        ...

    def read(self, indices: Sequence[int]) -> Tensor:
        """Frames by index, in any order and with repeats, as uint8 RGB ``(T, 3, H, W)``, upright, pixels square.

        Raises:
            IndexError: an index outside ``[0, num_frames)``.
            StaleFrameCountError: ``num_frames`` has turned out wrong and was corrected.
            VideoError: a frame cannot be read, or the frames differ in size.
        """
        ...


@dataclass(frozen=True)
class VideoProbe:
    """What a video really holds, found by decoding all of it.

    Attributes:
        num_frames: how many frames decode, at least 1.
        codec: FFmpeg's name of the codec, such as ``h264``; for frames in a folder or zip file ``jpeg`` or ``png``.
        width: of the frames as they are read (upright, pixels square), in pixels.
        height: likewise.
        rotation: by how many degrees counterclockwise the stored frames are turned to stand upright.
        problem: why only the first ``num_frames`` frames can be used; None where nothing is wrong.
    """

    num_frames: int
    codec: str
    width: int
    height: int
    rotation: int
    problem: str | None


def shown_reason(error: Exception) -> str:
    """What an error says, without the number and the path that system errors put around it."""
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def content_reason(head: bytes, otherwise: str) -> str:
    """Why nothing can make anything of a file that begins with ``head``: a download gone wrong, often.

    Args:
        head: some hundred bytes, or all there are.
        otherwise: what to say where the bytes do not tell.
    """
    if not head:
        return "it is empty"
    text = head.decode("utf-8-sig", "ignore")
    if len(text.encode()) < len(head) - TORN_BYTES or not all(c.isprintable() or c.isspace() for c in text):
        return otherwise
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return f"it is text, which begins with {line[:SHOWN_TEXT]!r}"


def check_indices(indices: Sequence[int], num_frames: int) -> None:
    """IndexError unless there are indices and all lie in ``[0, num_frames)``."""
    if not indices:
        raise IndexError("no frame index was given")
    if min(indices) < 0 or max(indices) >= num_frames:
        raise IndexError(f"frame indices {min(indices)} to {max(indices)} of a video of {num_frames} frames")


def check_pixels(path: Path, width: int, height: int) -> None:
    """VideoError where a frame of ``width`` by ``height`` pixels exceeds `MAX_PIXELS`."""
    if width * height > MAX_PIXELS:
        raise VideoError(path, f"frames of {width} x {height} pixels, more than the limit of {MAX_PIXELS:,} pixels")


def stack(path: Path, indices: Sequence[int], images: Mapping[int, Image]) -> Tensor:
    """The images by index as one clip, uint8 ``(T, 3, H, W)``; VideoError where they differ in size."""
    sizes = sorted({image.shape[:2] for image in images.values()})
    if len(sizes) > 1:
        raise VideoError(path, f"its frames differ in size (height, width): {', '.join(map(str, sizes))}")
    clip = torch.empty((len(indices), 3, *sizes[0]), dtype=torch.uint8)
    for frame, index in zip(clip.numpy(), indices, strict=True):
        np.copyto(frame, images[index].transpose(2, 0, 1))  # (3, H, W)
    return clip
