"""Conversion of decoded frames to the picture that a player shows: RGB, square pixels, upright."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from .video_decoder import Image, check_pixels

# Real pixels are never this anamorphic. A header with a larger ratio is damaged.
MOST_ANAMORPHIC = 8


def shown_size(width: int, height: int, aspect: Fraction | None) -> tuple[int, int]:
    """Return width and height with square pixels. The coarser side grows, so that no pixel is lost.

    Args:
        width: of the stored frame.
        height: of the stored frame.
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
        image = self._reformatter.reformat(frame, width, height, format="rgb24", threads=1).to_ndarray()
        return np.rot90(image, quarter_turns(frame))


def quarter_turns(frame: av.VideoFrame) -> int:
    """Return the number of counterclockwise quarter turns that turn the frame upright."""
    return round(frame.rotation / 90) % 4
