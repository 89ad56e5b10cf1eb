"""From a decoded frame to the picture a player shows: RGB, square pixels, upright."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from .video_decoder import Image, check_pixels

# A pixel is never eight times as wide as high; a header that says so is damaged.
MOST_ANAMORPHIC = 8


def shown_size(width: int, height: int, aspect: Fraction | None) -> tuple[int, int]:
    """Width and height with square pixels; the coarser side grows, so that no pixel is lost.

    Args:
        width: of the stored frame.
        height: likewise.
        aspect: width over height of one stored pixel; None, 0 and nonsense count as square.
    """
    if not aspect or not Fraction(1, MOST_ANAMORPHIC) <= aspect <= MOST_ANAMORPHIC:
        return width, height
    if aspect > 1:
        return round(width * aspect), height
    return width, round(height / aspect)


class UprightRGB:
    """Converts the frames of one video, one after the other.

    Args:
        path: the video's, for errors.
        aspect: width over height of one stored pixel, or None.
    """

    def __init__(self, path: Path, aspect: Fraction | None) -> None:
        self.path = path
        self.aspect = aspect
        self._reformatter = VideoReformatter()  # sets itself up for one kind of frame: kept for all of them

    def __call__(self, frame: av.VideoFrame) -> Image:
        """RGB ``(H, W, 3)``; VideoError where it has too many pixels."""
        width, height = shown_size(frame.width, frame.height, self.aspect)
        check_pixels(self.path, width, height)
        image = self._reformatter.reformat(frame, width, height, format="rgb24", threads=1).to_ndarray()
        return np.rot90(image, quarter_turns(frame))


def quarter_turns(frame: av.VideoFrame) -> int:
    """How many quarter turns counterclockwise set the frame upright."""
    return round(frame.rotation / 90) % 4
