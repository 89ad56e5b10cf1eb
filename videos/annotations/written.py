"""Segments to write, with the frames that they begin and end with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class WrittenSegment:
    """A labeled segment in seconds and in frames.

    Args:
        label: name of the action.
        start, end: seconds, the end excluded.
        first, last: indices of the first and the last frame.
        score: probability of the label.
    """

    label: str
    start: float
    end: float
    first: int
    last: int
    score: float


@dataclass(frozen=True)
class WrittenVideo:
    """A video and its segments.

    Args:
        name: path of the video as it is written.
        num_frames, width, height: of the video, in frames and pixels.
        segments: in order.
    """

    name: str
    num_frames: int
    width: int
    height: int
    segments: Sequence[WrittenSegment]
