"""The default decoder: PyAV, exact by construction.

Frame ``i`` is the ``i``-th that decoding from the start shows. Where the packets' headers allow it without changing a
frame, packets that the wanted frames do not need are left out (``packet_index``); each decoded frame must then be the
one that the headers foretold, else everything is decoded from the start and counted. So is a file whose headers tell
no times, such as AVI. Damage ends a video: what decodes after it leans on frames that are lost.
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

from .packet_index import PacketEntry, PacketIndex
from .packet_stream import PacketStream, as_video_error
from .upright import UprightRGB, quarter_turns
from .video_decoder import Image, StaleFrameCountError, VideoError, VideoProbe, check_indices, shown_reason, stack

Packet: TypeAlias = "av.Packet[VideoStream]"

KEPT_BYTES = 64 * 2**20
"""Packets of a file up to this size are kept from its opening to the first read, so that it is read once."""


class PyAVVideo:
    """A video file. No handle stays open between calls.

    Args:
        path: the file.
        threads: how many threads the decoder may use; the frames of a whole file do not depend on it.

    Raises:
        VideoError: not a video, no frame in it, or too large.
    """

    @staticmethod
    def versions() -> dict[str, str]:
        """See `VideoDecoder`."""
        libraries = {name: av.library_versions[name] for name in ("libavcodec", "libswscale")}
        return {"av": version("av"), **{name: ".".join(map(str, number)) for name, number in libraries.items()}}

    def __init__(self, path: Path, threads: int = 1) -> None:
        self.path = path
        self.damage: str | None = None
        self._threads = threads
        self._kept: tuple[VideoCodecContext, list[Packet]] | None = None
        self._index, self._aspect, self._codec = self._indexed()
        self._planned = self._index.has_times
        self._counted = False
        self.num_frames = self._index.num_frames
        if not self.num_frames:
            raise VideoError(path, self.damage or "it holds no video frame")

    def read(self, indices: Sequence[int]) -> Tensor:
        """See `VideoDecoder`."""
        check_indices(indices, self.num_frames)
        wanted = frozenset(indices)
        convert = UprightRGB(self.path, self._aspect)
        with as_video_error(self.path):
            images = self._read_planned(wanted, convert) if self._planned else None
            if images is None:
                self._planned = False
                images = self._read_from_start(wanted, convert)
        return stack(self.path, indices, images)

    def probe(self) -> VideoProbe:
        """What decoding the whole file shows."""
        convert = UprightRGB(self.path, self._aspect)
        with as_video_error(self.path), closing(self._frames()) as frames:
            first = next(frames, None)
            if first is None:
                raise VideoError(self.path, self.damage or "it holds no video frame")
            height, width = convert(first).shape[:2]
            rotation = 90 * quarter_turns(first)
            self._count(1 + sum(1 for _ in frames))
        return VideoProbe(self.num_frames, self._codec, width, height, rotation, self.damage)

    def _indexed(self) -> tuple[PacketIndex, Fraction | None, str]:
        entries: list[PacketEntry] = []
        kept, size = [], 0
        with PacketStream(self.path, self._threads) as stream:
            for packet in stream.packets():
                entries.append(stream.entry(packet))
                size += packet.size
                if size <= KEPT_BYTES:
                    kept.append(packet)
            self.damage = stream.damage
            if size <= KEPT_BYTES:
                self._kept = stream.context, kept
            return PacketIndex(entries, stream.context.reorder_depth > 0), stream.aspect, stream.codec

    def _read_planned(self, wanted: Collection[int], convert: UprightRGB) -> dict[int, Image] | None:
        """The wanted frames by index; None where a frame is not the one that the index foretold."""
        needed = self._index.needed(list(wanted))
        expected = iter(self._index.shown_times(needed))
        by_time = {self._index.time(index): index for index in wanted}
        skipping = len(needed) <= needed[-1]
        images: dict[int, Image] = {}
        size = None
        try:
            with closing(self._decoded(needed)) as frames:
                for frame in frames:
                    size = size or (frame.width, frame.height)
                    # of two fields in two packets, the second may have been left out
                    torn = skipping and frame.interlaced_frame
                    if torn or _frame_damage(frame, size) or frame.pts != next(expected, None):
                        return None
                    if frame.pts in by_time:
                        images[by_time[frame.pts]] = convert(frame)
                        if len(images) == len(by_time):
                            return images
        except av.FFmpegError:
            pass
        return None

    def _read_from_start(self, wanted: Collection[int], convert: UprightRGB) -> dict[int, Image]:
        """The wanted frames by index, from a pass that goes to the end unless the frames were counted before."""
        images: dict[int, Image] = {}
        count = 0
        with closing(self._frames()) as frames:
            for frame in frames:
                if count in wanted:
                    images[count] = convert(frame)
                    if self._counted and len(images) == len(wanted):
                        return images
                count += 1
        if self._counted:
            raise VideoError(self.path, f"decoding gave {self.num_frames} frames once and {count} the next time")
        said = self.num_frames
        self._count(count)
        if count != said:
            raise StaleFrameCountError(self.path, f"{count} frames decode, not {said} as its packets say")
        return images

    def _count(self, count: int) -> None:
        if not count:
            raise VideoError(self.path, self.damage or "it holds no video frame")
        self._planned = self._planned and count == self.num_frames
        if self._index.has_times and count < self.num_frames:
            self.damage = self.damage or f"its packets promise {self.num_frames} frames, of which {count} decode"
        self.num_frames, self._counted = count, True

    def _frames(self) -> Generator[av.VideoFrame]:
        """All frames in the order of showing, up to the end or the first damage."""
        size = None
        with closing(self._decoded(None)) as frames:
            while True:
                try:
                    frame = next(frames, None)
                except av.FFmpegError as error:
                    self.damage = f"its data is damaged: {shown_reason(error)}"
                    return
                if frame is None:
                    return
                size = size or (frame.width, frame.height)
                damage = _frame_damage(frame, size)
                if damage:
                    self.damage = damage
                    return
                yield frame

    def _decoded(self, needed: list[int] | None) -> Generator[av.VideoFrame]:
        """Frames of the packets at the ``needed`` places, in order, or of all."""
        if self._kept is not None:
            (context, packets), self._kept = self._kept, None  # a decoder is used once: it remembers
            chosen = packets if needed is None else [packets[place] for place in needed]
            yield from _decode(context, chosen)
            return
        with PacketStream(self.path, self._threads) as stream:
            yield from _decode(stream.context, _at(stream.packets(), needed))


Decoder = PyAVVideo


def _frame_damage(frame: av.VideoFrame, size: tuple[int, int]) -> str | None:
    if frame.is_corrupt:
        return "its data is damaged: parts of a frame are lost"
    if size != (frame.width, frame.height):
        return f"its frames change size from {size} to {(frame.width, frame.height)} (width, height)"
    return None


def _decode(context: VideoCodecContext, packets: Iterable[Packet]) -> Iterator[av.VideoFrame]:
    for packet in packets:
        yield from context.decode(packet)
    yield from context.decode(None)  # what the decoder holds back


def _at(packets: Iterator[Packet], places: list[int] | None) -> Iterator[Packet]:
    if places is None:
        yield from packets
        return
    wanted, last = frozenset(places), places[-1]
    for place, packet in enumerate(packets):
        if place in wanted:
            yield packet
        if place == last:
            return
