"""The frames of a long video in order, with their times. Each frame is decoded once and not stored."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeAlias

import av
import numpy as np
import torch
from av.video import VideoStream
from einops import rearrange
from torch import Tensor

from ...errors import DmgalError
from ...files import printable
from .base import UprightRGB, VideoDecoder, VideoError, shown_reason
from .images import open_images
from .packets import PacketStream, as_video_error, open_container

TimedFrame: TypeAlias = "tuple[Fraction, Callable[[], Tensor]]"
"""Presentation time in seconds after the first frame, and a function that returns the frame, uint8 ``(3, H, W)``."""


class TimedFrames:
    """Frames of a video with their times, for one iteration. A frame is valid until the next one is requested.

    Damage ends the video, as in all decoders. The frames before it are used.

    Args:
        path: a video file, or a folder or zip file of frames.
        frames_per_second: required for a folder or zip file. For a video file it is used only without times in it.

    Attributes:
        seconds: duration in the header, for a progress bar, or None if it has none.
        damage: the reason why the frames ended early, or None.
        decoded: number of frames decoded so far.

    Raises:
        VideoError: the video cannot be read.
        DmgalError: the frames have no times and ``frames_per_second`` is missing.
    """

    def __init__(self, path: str | os.PathLike[str], frames_per_second: float | None = None) -> None:
        self.path = Path(path)
        self.damage: str | None = None
        self.decoded = 0
        if frames_per_second is not None and not 0 < frames_per_second < float("inf"):
            self._refuse_without_rate(f"{frames_per_second} frames per second")
        self._rate = None if frames_per_second is None else Fraction(frames_per_second).limit_denominator(100_000)
        self._images = open_images(self.path)
        if self._images is not None:
            if self._rate is None:
                self._refuse_without_rate("single frames without times")
            self.seconds: float | None = float(self._images.num_frames / self._rate)
        else:
            self.seconds = _duration_in_header(self.path)

    def __iter__(self) -> Iterator[TimedFrame]:
        if self._images is None or self._rate is None:
            return self._iterate_file()
        return self._iterate_images(self._images, self._rate)

    def _iterate_file(self) -> Iterator[TimedFrame]:
        with PacketStream(self.path, threads=1) as stream:
            convert = UprightRGB(self.path, stream.aspect)
            clock = Clock(self._rate or stream.context.framerate, stream.time_base)
            for frame in self._frames(stream):
                self.decoded += 1
                time = clock.time_of(frame)
                if time is None:
                    self._refuse_without_rate("a file without times and without a frame rate")
                yield time, partial(converted, convert, frame)
        if not self.decoded:
            raise VideoError(self.path, self.damage or "it holds no video frame")

    def _frames(self, stream: PacketStream) -> Iterator[av.VideoFrame]:
        packets = stream.packets()
        try:
            with as_video_error(self.path):
                for packet in packets:
                    yield from self._check_integrity(stream.context.decode(packet))
                yield from self._check_integrity(stream.context.decode(None))  # flushes the decoder
            self.damage = self.damage or stream.damage
        except VideoError as error:
            if not self.decoded:
                raise
            cause = error.__cause__
            self.damage = f"its data is damaged: {shown_reason(cause if isinstance(cause, Exception) else error)}"
        except _DamagedFrameError:
            self.damage = "its data is damaged: parts of a frame are lost"

    @staticmethod
    def _check_integrity(frames: list[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        for frame in frames:
            if frame.is_corrupt:
                raise _DamagedFrameError
            yield frame

    def _iterate_images(self, images: VideoDecoder, rate: Fraction) -> Iterator[TimedFrame]:
        while self.decoded < images.num_frames:  # decreases if a frame cannot be read
            index = self.decoded
            try:
                frame = images.read([index])[0]
            except VideoError:
                if index == 0 or images.damage is None:
                    raise
                break
            self.decoded += 1
            yield index / rate, partial(_unchanged, frame)
        self.damage = images.damage

    def _refuse_without_rate(self, received: str) -> NoReturn:
        raise DmgalError(
            "The frames of this video have no times.",
            received=f"{printable(str(self.path))}: {received}",
            expected="a positive number of frames per second",
            remedy="Pass --fps, for example --fps 25.",
        )


class _DamagedFrameError(Exception):
    pass


class Clock:
    """Strictly increasing times, from the file if it has them, otherwise from a frame rate."""

    def __init__(self, rate: Fraction | None, time_base: Fraction | None) -> None:
        self._step = None if not rate else 1 / Fraction(rate)
        self._time_base = time_base  # PyAV does not set that of the frames that it flushes at the end
        self._start: Fraction | None = None
        self._last: Fraction | None = None

    def time_of(self, frame: av.VideoFrame) -> Fraction | None:
        """Return the time of the next frame in seconds after the first one, or None if it cannot be determined."""
        time_base = frame.time_base or self._time_base
        timestamp = None if frame.pts is None or time_base is None else frame.pts * time_base
        if self._last is None:
            self._start = timestamp
            self._last = Fraction(0)
            return self._last
        time = None if timestamp is None or self._start is None else timestamp - self._start
        if time is None or time <= self._last:
            if self._step is None:
                return None
            time = self._last + self._step
        self._last = time
        return time


def _duration_in_header(path: Path) -> float | None:
    with as_video_error(path), open_container(path) as container:
        streams: tuple[VideoStream, ...] = container.streams.video
        stream = streams[0] if streams else None
        if stream is not None and stream.duration and stream.time_base:
            return float(stream.duration * stream.time_base)
        return container.duration / av.time_base if container.duration else None


def converted(convert: UprightRGB, frame: av.VideoFrame) -> Tensor:
    """Return a decoded frame as uint8 ``(3, H, W)``, upright."""
    return torch.from_numpy(np.ascontiguousarray(rearrange(convert(frame), "h w c -> c h w")))


def _unchanged(frame: Tensor) -> Tensor:
    return frame
