"""Segments of videos, and the names of clips that are a segment of a file.

The name of such a clip is ``FILE#t=START,END`` with times in seconds (W3C Media Fragments URI 1.0, section 4.2.1), or
``FILE#frames=START,END`` with frame indices (our own, for tools that count frames). The end is excluded. Times count
from the first frame, as those of `TimedFrames` do.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from ...errors import DmgalError
from ...files import printable

_NUMBER = r"(\d{1,9}(?:\.\d{1,9})?)"
_NAME = re.compile(rf"(?P<file>.+)#(?P<unit>t|frames)={_NUMBER},{_NUMBER}", re.DOTALL)
_CLOCK = re.compile(r"(?:(?:(\d{1,4}):)?(\d{1,2}):)?(\d{1,9}(?:\.\d{1,20})?)")
MOST_SECONDS = 10**6
"""Latest time of a segment (11 days)."""
DECIMALS = 6


@dataclass(frozen=True)
class Span:
    """The part of a video from ``start`` up to ``end``, in seconds, or as indices of frames.

    Raises:
        ValueError: it is empty, begins before the video, ends too late or has parts of a frame.
    """

    start: Fraction
    end: Fraction
    unit: Literal["t", "frames"] = "t"

    def __post_init__(self) -> None:
        if self.end <= self.start:
            raise ValueError(f"{self}, which {'ends before it begins' if self.end < self.start else 'is empty'}")
        if self.start < 0 or self.end > MOST_SECONDS * (1 if self.unit == "t" else 1000):
            raise ValueError(f"{self}, not between 0 and {MOST_SECONDS:,} s")
        if self.unit == "frames" and (self.start.denominator, self.end.denominator) != (1, 1):
            raise ValueError(f"{self} with a part of a frame")

    @classmethod
    def of_seconds(cls, start: float, end: float) -> Span:
        """Return the span between two times, rounded to microseconds."""
        first, last = (Fraction(round(time, DECIMALS)).limit_denominator(10**DECIMALS) for time in (start, end))
        return cls(first, last)

    @classmethod
    def of_frames(cls, start: int, end: int) -> Span:
        """Return the span of the frames from ``start`` up to ``end``, which is excluded."""
        return cls(Fraction(start), Fraction(end), "frames")

    def __str__(self) -> str:
        return f"{_text(self.start)} to {_text(self.end)} {'s' if self.unit == 't' else '(frames)'}"

    @property
    def fragment(self) -> str:
        """The end of a clip's name, such as ``#t=1.5,3``."""
        return f"#{self.unit}={_text(self.start)},{_text(self.end)}"


def _text(number: Fraction) -> str:
    text = f"{float(number):.{DECIMALS}f}".rstrip("0").rstrip(".")
    return text or "0"


@dataclass(frozen=True)
class Annotation:
    """A labeled segment of a video, as a file names it.

    Args:
        video: path or name of the video.
        label: name of the action.
        span: the part of the video.
    """

    video: str
    label: str
    span: Span

    @property
    def clip(self) -> str:
        """The name of the clip."""
        return self.video + self.span.fragment


def split_name(name: str) -> tuple[str, Span | None]:
    """Return the file of a clip's name, and the span if the clip is a segment of it.

    Raises:
        DmgalError: the segment ends before it begins, or is empty.
    """
    match = _NAME.fullmatch(name) if "#" in name else None
    if match is None:
        return name, None
    file, unit, start, end = match.groups()
    try:
        return file, Span(Fraction(start), Fraction(end), "t" if unit == "t" else "frames")
    except ValueError as error:
        raise DmgalError(
            "This is not a segment of a video.",
            received=f"{printable(name)}: {error}",
            expected="FILE#t=START,END in seconds or FILE#frames=START,END, with an end after the start",
            remedy="Correct the start or the end.",
        ) from error


def file_and_span(path: str | os.PathLike[str]) -> tuple[str, Span | None]:
    """Return the file that a path leads to, and the span if it is the name of a segment. A file of that name wins."""
    name = os.fspath(path)
    if "#" not in name or os.path.lexists(name):
        return name, None
    return split_name(name)


def parse_time(text: str) -> Fraction:
    """Return the seconds in a text such as ``83.5``, ``1:23.5`` or ``0:01:23.5``.

    Raises:
        ValueError: it is not a time.
    """
    match = _CLOCK.fullmatch(text.strip().replace(",", "."))
    if match is None:
        raise ValueError(f"{text.strip()[:50]!r} is not a time: seconds, or hours:minutes:seconds")
    hours, minutes, seconds = match.groups()
    time = 3600 * int(hours or 0) + 60 * int(minutes or 0) + Fraction(seconds)
    if time > MOST_SECONDS:
        raise ValueError(f"{text.strip()[:50]!r} is later than {MOST_SECONDS:,} s")
    return time
