"""One pass over a video file: its header, then its compressed packets up to the end or the first damage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

import av
from av.stream import Disposition
from av.video import VideoStream

from .packet_index import PacketEntry
from .packet_kinds import PacketKind, kind_reader
from .video_decoder import HEAD_BYTES, MAX_PIXELS, VideoError, check_pixels, content_reason, shown_reason

MAX_PACKETS = 2**20
"""Maximum number of packets (nine hours at 30 frames per second), because damaged tables can claim any number."""

# Demuxers that read presentation times from the file. Others guess them, wrongly for reordered frames.
_FORMATS_WITH_TIMES = {"mp4", "matroska", "flv", "gif"}


class PacketStream:
    """The first video stream of a file other than a cover picture, for one use in a ``with`` statement.

    Args:
        path: the file.
        threads: maximum number of threads of the decoder.

    Attributes:
        context: the decoder, which outlives this object.
        codec: FFmpeg's name of the codec.
        aspect: width over height of one stored pixel, or None.
        damage: why the packets ended early, or None.

    Raises:
        VideoError: the file is not a video, has no video stream, or its frames are too large.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self.path = path
        self.damage: str | None = None
        self._kinds: dict[PacketKind | None, PacketKind | None] = {}
        self._container = self._open_container()
        try:
            with as_video_error(path):
                self._stream = self._video_stream()
                self._read_header(threads)
        except VideoError:
            self._container.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._container.close()

    def packets(self) -> Iterator[av.Packet[VideoStream]]:
        """Yield the non-empty packets in decoding order. Set ``damage`` if they end early."""
        packets = self._container.demux(self._stream)
        for place in count():
            if place > MAX_PACKETS:
                raise VideoError(self.path, f"more than {MAX_PACKETS:,} packets, the limit")
            try:
                packet = next(packets, None)
            except (av.FFmpegError, ValueError, OverflowError) as error:
                self.damage = f"its data is damaged: {shown_reason(error)}"
                return
            if packet is None:
                return
            if packet.is_corrupt:
                self.damage = "its data is damaged: a packet is cut short"
                return
            if packet.size:
                yield packet

    def entry(self, packet: av.Packet[VideoStream]) -> PacketEntry:
        """Return the index entry of a packet."""
        # A new configuration can only occur at a key frame, and the query is slow.
        changes = packet.is_keyframe and packet.has_sidedata("new_extradata")
        kind = None if changes else self._read_kind(memoryview(packet))
        kind = self._kinds.setdefault(kind, kind)  # shares one object between equal kinds to save memory
        shown = not packet.is_discard and not (kind is not None and kind.hidden)
        return PacketEntry(packet.pts if self._times_are_read else None, shown, kind)

    def _open_container(self) -> av.container.InputContainer:
        with as_video_error(self.path), _describing_unknown_content(self.path):
            # "file:" keeps FFmpeg from reading a name with a colon as a protocol. The whitelist keeps it from following
            # a playlist with a video's name to another machine.
            return av.open(
                f"file:{self.path}",
                options={"protocol_whitelist": "file", "max_pixels": str(MAX_PIXELS)},
                metadata_errors="replace",
            )

    def _video_stream(self) -> VideoStream:
        streams = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise VideoError(self.path, "it has no video stream")
        if streams[0].codec_context is None:
            raise VideoError(self.path, "FFmpeg has no decoder for its codec")
        return streams[0]

    def _read_header(self, threads: int) -> None:
        context = self._stream.codec_context
        check_pixels(self.path, context.width, context.height)
        context.thread_count = threads
        if threads > 1:
            context.thread_type = "AUTO"
        context.options = {"max_pixels": str(MAX_PIXELS)}
        context.open(strict=False)  # determines if the decoder reorders
        self.context = context
        self.codec = context.codec.canonical_name
        self.aspect: Fraction | None = self._stream.sample_aspect_ratio
        self._times_are_read = not _FORMATS_WITH_TIMES.isdisjoint(self._container.format.name.split(","))
        self._read_kind = kind_reader(self.codec, context.extradata or b"")


@contextmanager
def _describing_unknown_content(path: Path) -> Iterator[None]:
    """Describe the content of a file that FFmpeg does not recognize, since FFmpeg's own message does not."""
    try:
        yield
    except (av.InvalidDataError, av.EOFError) as error:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
        otherwise = "no video that FFmpeg knows, or its header or index is damaged or missing"
        raise VideoError(path, content_reason(head, otherwise)) from error


@contextmanager
def as_video_error(path: Path) -> Iterator[None]:
    """Convert exceptions of PyAV about a bad file into a `VideoError`."""
    try:
        yield
    except VideoError:
        raise
    except (av.FFmpegError, OSError, ValueError, OverflowError, ZeroDivisionError, MemoryError) as error:
        raise VideoError(path, shown_reason(error)) from error
