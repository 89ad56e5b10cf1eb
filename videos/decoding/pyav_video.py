"""The default decoder: PyAV, exact by construction.

Frame ``i`` is the ``i``-th frame in presentation order when decoding from the start. Packets that the wanted frames do
not need are skipped if the headers allow it (`PacketIndex`). Each decoded frame must then have the time predicted by
the headers. Otherwise the file is decoded from the start and its frames are counted. This also applies to files without
times, such as AVI. Damage ends a video, because later frames depend on lost ones.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import av
from av.video import VideoStream
from av.video.codeccontext import VideoCodecContext
from torch import Tensor

from .base import (
    Image,
    StaleFrameCountError,
    UprightRGB,
    VideoError,
    VideoProbe,
    check_indices,
    quarter_turns,
    shown_reason,
    stack,
)
from .packets import PacketEntry, PacketIndex, PacketStream, as_video_error, frame_damage

Packet: TypeAlias = "av.Packet[VideoStream]"

KEPT_BYTES = 64 * 2**20
"""Packets of a file up to this size stay in memory until the first read, so that the file is read once."""


class PyAVVideo:
    """A video file, with no open handle between calls.

    Args:
        path: the file.
        threads: maximum number of threads of the decoder. The frames of an undamaged file do not depend on it.

    Raises:
        VideoError: the file is not a video, has no frames, or its frames are too large.
    """

    @staticmethod
    def versions() -> dict[str, str]:
        """Return the versions of PyAV and FFmpeg's libraries (see `VideoDecoder`)."""
        libraries = {name: av.library_versions[name] for name in ("libavcodec", "libswscale")}
        return {"av": version("av"), **{name: ".".join(map(str, number)) for name, number in libraries.items()}}

    def __init__(self, path: Path, threads: int = 1) -> None:
        self.path = path
        self.damage: str | None = None
        self._threads = threads
        self._unread_packets: tuple[VideoCodecContext, list[Packet]] | None = None
        self._index, self._aspect, self._codec = self._build_index()
        self._index_is_reliable = self._index.has_times
        self._count_is_exact = False
        self.num_frames = self._index.num_frames
        if not self.num_frames:
            raise VideoError(path, self.damage or "it holds no video frame")

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return frames by index (see `VideoDecoder`)."""
        check_indices(indices, self.num_frames)
        wanted = frozenset(indices)
        convert = UprightRGB(self.path, self._aspect)
        with as_video_error(self.path):
            images = self._read_by_index(wanted, convert) if self._index_is_reliable else None
            if images is None:
                self._index_is_reliable = False
                images = self._read_from_start(wanted, convert)
        return stack(self.path, indices, images)

    def probe(self) -> VideoProbe:
        """Decode the whole file and return what was found."""
        convert = UprightRGB(self.path, self._aspect)
        with as_video_error(self.path), closing(self._frames()) as frames:
            first = next(frames, None)
            if first is None:
                raise VideoError(self.path, self.damage or "it holds no video frame")
            height, width = convert(first).shape[:2]
            rotation = 90 * quarter_turns(first)
            self._count(1 + sum(1 for _ in frames))
        return VideoProbe(self.num_frames, self._codec, width, height, rotation, self.damage)

    def _build_index(self) -> tuple[PacketIndex, Fraction | None, str]:
        entries: list[PacketEntry] = []
        packets: list[Packet] = []
        size = 0
        with PacketStream(self.path, self._threads) as stream:
            for packet in stream.packets():
                entries.append(stream.entry(packet))
                size += packet.size
                if size <= KEPT_BYTES:
                    packets.append(packet)
            self.damage = stream.damage
            if size <= KEPT_BYTES:
                self._unread_packets = stream.context, packets
            return PacketIndex(entries, stream.context.reorder_depth > 0), stream.aspect, stream.codec

    def _read_by_index(self, wanted: Collection[int], convert: UprightRGB) -> dict[int, Image] | None:
        """Return the wanted frames by index, or None if a frame is not the one predicted by the index."""
        needed = self._index.needed(list(wanted))
        expected = iter(self._index.shown_times(needed))
        by_time = {self._index.time(index): index for index in wanted}
        skipping = len(needed) <= needed[-1]
        images: dict[int, Image] = {}
        size = None
        try:
            with closing(self._decode_packets(needed)) as frames:
                for frame in frames:
                    size = size or (frame.width, frame.height)
                    # If the two fields of a frame are in two packets, the second may have been skipped.
                    torn = skipping and frame.interlaced_frame
                    if torn or frame_damage(frame, size) or frame.pts != next(expected, None):
                        return None
                    if frame.pts in by_time:
                        images[by_time[frame.pts]] = convert(frame)
                        if len(images) == len(by_time):
                            return images
        except av.FFmpegError:
            pass
        return None

    def _read_from_start(self, wanted: Collection[int], convert: UprightRGB) -> dict[int, Image]:
        """Return the wanted frames by index. The pass runs to the end unless the frames were counted before."""
        images: dict[int, Image] = {}
        count = 0
        with closing(self._frames()) as frames:
            for frame in frames:
                if count in wanted:
                    images[count] = convert(frame)
                    if self._count_is_exact and len(images) == len(wanted):
                        return images
                count += 1
        if self._count_is_exact:
            raise VideoError(self.path, f"decoding gave {self.num_frames} frames once and {count} the next time")
        promised = self.num_frames
        self._count(count)
        if count != promised:
            raise StaleFrameCountError(self.path, f"{count} frames decode, not {promised} as its packets say")
        return images

    def _count(self, count: int) -> None:
        if not count:
            raise VideoError(self.path, self.damage or "it holds no video frame")
        self._index_is_reliable = self._index_is_reliable and count == self.num_frames
        if self._index.has_times and count < self.num_frames:
            self.damage = self.damage or f"its packets promise {self.num_frames} frames, of which {count} decode"
        self.num_frames, self._count_is_exact = count, True

    def _frames(self) -> Generator[av.VideoFrame]:
        """Yield all frames in presentation order, up to the end or the first damage."""
        size = None
        with closing(self._decode_packets(None)) as frames:
            while True:
                try:
                    frame = next(frames, None)
                except av.FFmpegError as error:
                    self.damage = f"its data is damaged: {shown_reason(error)}"
                    return
                if frame is None:
                    return
                size = size or (frame.width, frame.height)
                damage = frame_damage(frame, size)
                if damage:
                    self.damage = damage
                    return
                yield frame

    def _decode_packets(self, needed: list[int] | None) -> Generator[av.VideoFrame]:
        """Yield the frames of the packets at the ``needed`` positions, or of all packets."""
        if self._unread_packets is not None:
            context, packets = self._unread_packets
            self._unread_packets = None  # a decoder has state, so it is used once
            chosen = packets if needed is None else [packets[position] for position in needed]
            yield from _decode(context, chosen)
            return
        with PacketStream(self.path, self._threads) as stream:
            yield from _decode(stream.context, _select(stream.packets(), needed))


Decoder = PyAVVideo


def _decode(context: VideoCodecContext, packets: Iterable[Packet]) -> Iterator[av.VideoFrame]:
    for packet in packets:
        yield from context.decode(packet)
    yield from context.decode(None)  # flushes the decoder


def _select(packets: Iterator[Packet], positions: list[int] | None) -> Iterator[Packet]:
    if positions is None:
        yield from packets
        return
    wanted, last = frozenset(positions), positions[-1]
    for position, packet in enumerate(packets):
        if position in wanted:
            yield packet
        if position == last:
            return
