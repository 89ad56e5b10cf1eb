"""Segments of a file as videos of their own: exactly the frames of a span, whichever decoder reads them.

A frame belongs to a span if the middle of its time on screen does. So rounded times choose the same frames, and spans
without a gap between them share no frame. All times are those of `TimedFrames`, from the headers if they are reliable
(see `PacketIndex`), otherwise from decoding the file once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...errors import DmgalError
from ..annotations.segment import Span
from ..catalog.files import Stamp, stamp
from .base import OpenVideo, StaleFrameCountError, VideoError, VideoProbe, check_indices
from .packets import PacketIndex, PacketStream
from .stream import TimedFrames

SLACK_SECONDS, SLACK_FRAMES = 0.5, 15
"""A segment may end this much after its video, because tools measure the length of a file with its sound."""
TICKS = 1_000_000
FILES_REMEMBERED = 8


class SegmentError(VideoError):
    """A segment that its video does not have.

    Args:
        path: the name of the segment.
        reason: the problem with it.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        DmgalError.__init__(
            self,
            f"Cannot read the segment {os.fspath(path)}.",
            received=reason,
            expected="a start and an end within the video, with at least one frame between them",
            remedy="Correct the annotation. --data.on-bad-video skip excludes such segments.",
        )


@dataclass(frozen=True, eq=False)
class FrameTimes:
    """Presentation times of all frames of a file.

    Attributes:
        ticks: ``(F,)`` int64, increasing, from 0.
        unit: seconds of a tick.
        damage: the reason why the frames end early, or None.
    """

    ticks: NDArray[np.int64]
    unit: Fraction
    damage: str | None = None

    @property
    def seconds(self) -> float:
        """The end of the last frame, which is shown as long as the one before."""
        return float(self._limits[-1] * self.unit)

    @property
    def _limits(self) -> NDArray[np.int64]:
        """Start of each frame, and the end of the last one."""
        last = self.ticks[-1] - self.ticks[-2] if len(self.ticks) > 1 else ceil(Fraction(1, 25) / self.unit)
        return np.append(self.ticks, self.ticks[-1] + last)

    def frames_in(self, span: Span) -> range:
        """Return the indices of the frames in a span of seconds."""
        limits = self._limits
        doubled_middles = limits[:-1] + limits[1:]
        ends = (min(ceil(2 * end / self.unit), 2 * int(limits[-1]) + 1) for end in (span.start, span.end))
        return range(*(int(np.searchsorted(doubled_middles, end)) for end in ends))


def frame_times(path: str | os.PathLike[str]) -> FrameTimes:
    """Return the times of a file's frames. Those of the last few files are remembered.

    Raises:
        VideoError: the file cannot be read.
        DmgalError: its frames have no times.
    """
    return _frame_times(os.fspath(path), stamp(path))


@lru_cache(maxsize=FILES_REMEMBERED)
def _frame_times(path: str, stamp: Stamp) -> FrameTimes:
    frames = TimedFrames(path)
    with PacketStream(Path(path), threads=1) as stream:
        entries = [stream.entry(packet) for packet in stream.packets()]
        index = PacketIndex(entries, stream.context.reorder_depth > 0)
        if index.has_times and index.num_frames and stream.time_base:
            times = index.shown_times(range(len(entries)))
            ticks = np.array([time for time in times if time is not None], dtype=np.int64)
            return FrameTimes(ticks - ticks[0], stream.time_base, stream.damage)
    ticks = np.array([round(time * TICKS) for time, _ in frames], dtype=np.int64)
    return FrameTimes(ticks, Fraction(1, TICKS), frames.damage)


class VideoSegment:
    """An open video whose frames are those of a span of another one (see `OpenVideo`).

    Args:
        path: the name of the segment.
        whole: the open video.
        file: the path of the video.
        span: the part to read.

    Raises:
        SegmentError: the video does not have the segment.
        DmgalError: the span is in seconds, and the frames have no times.
    """

    def __init__(self, path: Path, whole: OpenVideo, file: str, span: Span) -> None:
        self.path = path
        self._whole = whole
        if span.unit == "frames":
            self._range, length = range(int(span.start), int(span.end)), f"{whole.num_frames} frames"
            is_late = span.end > whole.num_frames + SLACK_FRAMES
        else:
            times = frame_times(file)
            self._range, length = times.frames_in(span), f"{times.seconds:.3f} s"
            is_late = span.end > times.seconds + SLACK_SECONDS
        if is_late or not len(self._range):
            why = f", because {whole.damage}" if whole.damage else ""
            raise SegmentError(path, f"{span}{', with no frame,' * (not is_late)} of a video of {length}{why}")
        self._adjust()

    def _adjust(self) -> None:
        """Adjust to the number of frames of the video, which decoding may have corrected."""
        whole = self._whole
        self.num_frames = min(self._range.stop, whole.num_frames) - self._range.start
        self.damage = whole.damage if self._range.stop > whole.num_frames else None
        if self.num_frames < 1:
            reason = whole.damage or "its frames are fewer than its headers say"
            raise SegmentError(self.path, f"it begins after the last frame of its video: {reason}")

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return frames by index (see `OpenVideo`)."""
        check_indices(indices, self.num_frames)
        try:
            return self._whole.read([self._range.start + index for index in indices])
        except StaleFrameCountError:
            self._adjust()
            raise

    def probe(self) -> VideoProbe:
        """Decode the whole file and return what was found of the segment."""
        whole: VideoProbe = self._whole.probe()  # type: ignore[attr-defined]
        self._adjust()
        return replace(whole, num_frames=self.num_frames, problem=self.damage)
