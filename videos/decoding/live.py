"""Frames of a live source: a webcam, or a stream of a network camera (RTSP, HTTP and others that FFmpeg reads).

A source that ends, fails or sends nothing for a while is opened again after 1, 2, 4, 8 and 16 seconds. Then it counts
as lost. A stream of known length that ends is finished. Times continue after a break. The frame after a break or a jump
of the times is marked, because nothing should be computed across it.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import av
from av.video import VideoStream
from torch import Tensor

from ...errors import DmgalError
from ...files import printable
from .base import MAX_PIXELS, UprightRGB, check_pixels, shown_reason
from .packets import PLAYLISTS, preferred_stream
from .stream import Clock, converted

logger = logging.getLogger(__name__)
SCHEMES = ("rtsp", "rtsps", "http", "https", "rtmp", "rtmps", "srt", "udp", "tcp", "rtp")
PROTOCOLS = (*SCHEMES, "httpproxy", "tls", "crypto")  # no local files, whatever a playlist names
STREAM_PLAYLISTS = {"rtsp", "hls", "dash"}
WITHOUT_TIMES = {"mpjpeg", "mjpeg"}
"""Formats of still pictures without times, whose frames have the time of their arrival."""
CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}:none")}
"""FFmpeg's format of webcams and the name of a webcam by its number."""
RETRIES, FIRST_WAIT = 5, 1.0
"""Number of attempts to open an interrupted source again, and seconds before the first one. The wait doubles."""
MOMENT = Fraction(1, 1000)
LONGEST_STEP = 2.0
"""Seconds between two frames after which the source counts as interrupted."""


@dataclass(frozen=True)
class LiveInput:
    """A live source as FFmpeg opens it. ``name`` is for messages and has no password."""

    url: str
    name: str
    format: str | None = None


def live_input(source: str) -> LiveInput | None:
    """Return the live source of a URL, a device or the number of a webcam, or None for the path of a file.

    Raises:
        DmgalError: webcams have no known name on this system.
    """
    if source.isdecimal() and not Path(source).exists():
        camera = CAMERAS.get(sys.platform)
        if camera is None:
            raise DmgalError(
                "Webcams cannot be opened by number on this system.",
                received=f"{source} on {sys.platform}",
                expected=f"{' or '.join(CAMERAS)}",
                remedy="Let another program send the webcam as a stream, and pass its URL.",
            )
        return LiveInput(camera[1].format(source), f"webcam {source}", camera[0])
    if re.fullmatch(r"/dev/video\d+", source):
        return LiveInput(source, source, "v4l2")
    parts = urlsplit(source) if "://" in source else None
    if parts is None or parts.scheme.lower() not in SCHEMES:
        return None
    return LiveInput(source, printable(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"))


@dataclass(frozen=True)
class LiveFrame:
    """A frame of a live source.

    Attributes:
        time: seconds after the first frame of the source.
        read: returns the frame, uint8 ``(3, H, W)``. Valid until the next frame is requested.
        is_first: True after a break.
    """

    time: Fraction
    read: Callable[[], Tensor]
    is_first: bool


class LiveFrames:
    """Frames of a live source in order, for one iteration. Another thread may call `close`.

    Args:
        source: see `live_input`.
        patience: seconds without a frame after which the source counts as interrupted.
        retries: number of attempts to open it again.
        seconds: end after this time.

    Attributes:
        decoded: number of frames so far.
    """

    def __init__(
        self,
        source: LiveInput,
        patience: float = 5.0,
        retries: int = RETRIES,
        seconds: float = float("inf"),
    ) -> None:
        self.source = source
        self.decoded = 0
        self._patience, self._retries, self._seconds_wanted = patience, retries, seconds
        self._closed = threading.Event()
        self._started: float | None = None
        self._last = Fraction(0)

    def close(self) -> None:
        """End the iteration, at the latest after ``patience`` seconds."""
        self._closed.set()

    def __iter__(self) -> Iterator[LiveFrame]:
        """Yield the frames.

        Raises:
            DmgalError: the source cannot be opened, has no video, or was lost.
        """
        attempt = 0
        while True:
            decoded = self.decoded
            try:
                is_finished = yield from self._connection()
                reason = "it ended"
            except (av.FFmpegError, OSError, ValueError) as error:
                if isinstance(error, DmgalError):
                    raise
                is_finished, reason = False, _reason(error, self._patience)
            if is_finished or self._closed.is_set():
                return
            if self.decoded > decoded:
                attempt = 0
                text = "%s was interrupted at %.1f s: %s; trying again"
                logger.warning(text, self.source.name, self._last, reason)
            if not self.decoded or attempt == self._retries:
                raise self._lost(reason)
            if self._closed.wait(FIRST_WAIT * 2**attempt):
                return
            attempt += 1

    def _connection(self) -> Generator[LiveFrame, None, bool]:
        """Yield frames until the stream ends or fails. Return True if it is finished."""
        with self._open() as container:
            stream: VideoStream | None = preferred_stream(container.streams.video)
            if stream is None or stream.codec_context is None:
                raise ValueError("it has no video that FFmpeg decodes")
            check_pixels(Path(self.source.name), stream.codec_context.width, stream.codec_context.height)
            convert = UprightRGB(Path(self.source.name), stream.sample_aspect_ratio)
            is_timed = WITHOUT_TIMES.isdisjoint(container.format.name.split(","))
            clock, start = Clock(stream.average_rate, stream.time_base), Fraction(0)
            previous: Fraction | None = None
            for frame in self._frames(container, stream):
                if self._started is None:
                    self._started = time.monotonic()
                if previous is None:
                    start = max(self._elapsed(), self._last + MOMENT) if self.decoded else Fraction(0)
                seconds = clock.time_of(frame) if is_timed else None
                now = self._elapsed() if seconds is None else start + seconds
                if previous is not None and now <= previous:
                    continue
                is_first = previous is None or now - previous > LONGEST_STEP
                previous = self._last = now
                self.decoded += 1
                yield LiveFrame(now, partial(converted, convert, frame), is_first)
                if self._closed.is_set() or now >= self._seconds_wanted:
                    return True
            return bool(container.duration and container.duration > 0)

    def _frames(self, container: av.container.InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
        """Yield the intact frames. Lost packets damage some, and the stream continues."""
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.InvalidDataError:
                continue
            yield from (frame for frame in frames if not frame.is_corrupt)

    def _open(self) -> av.container.InputContainer:
        source = self.source
        options = {"max_pixels": str(MAX_PIXELS)}
        if source.format is None:
            formats = ",".join(sorted(av.formats_available - (PLAYLISTS - STREAM_PLAYLISTS)))
            options |= {"protocol_whitelist": ",".join(PROTOCOLS), "format_whitelist": formats, "rtsp_transport": "tcp"}
        timeout = self._patience, self._patience
        return av.open(source.url, format=source.format, options=options, metadata_errors="replace", timeout=timeout)

    def _elapsed(self) -> Fraction:
        """Return the seconds since the first frame arrived."""
        seconds = 0.0 if self._started is None else time.monotonic() - self._started
        return Fraction(seconds).limit_denominator(1000)

    def _lost(self, reason: str) -> DmgalError:
        if not self.decoded:
            return DmgalError(
                "This source cannot be watched.",
                received=f"{self.source.name}: {reason}",
                expected="a webcam, or a stream of a network camera that sends video",
                remedy="Check that the source is on and its address is right, for example with ffplay.",
            )
        return DmgalError(
            "The source was lost.",
            received=f"{self.source.name}: {reason}, after {self.decoded:,} frames and {self._retries} more attempts",
            expected="a source that sends video again within half a minute",
            remedy="Check the camera and the network, and start again.",
        )


def _reason(error: Exception, patience: float) -> str:
    if isinstance(error, av.ExitError):
        return f"nothing was received for {patience:g} s"
    return printable(shown_reason(error))
