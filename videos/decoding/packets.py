"""Choice of the packets to decode for given frames, from the headers of one pass over a file and without decoding.

Only guarantees of the standards are used, so that skipping packets cannot change a frame: ITU-T H.264 7.4.1
(``nal_ref_idc``, IDR pictures), ITU-T H.265 7.4.2.2 (sub-layer non-reference pictures, IDR pictures), RFC 6386 9.1
(VP8), and the VP9 bitstream specification 7.2. Recovery points and the clean random access of open GOPs guarantee less,
so they count as ordinary frames. The pass ends at the first damage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from itertools import count, pairwise
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import av
from av.stream import Disposition
from av.video import VideoStream

from ...files import check_regular, open_regular
from .base import HEAD_BYTES, MAX_PIXELS, VideoError, check_pixels, content_reason, shown_reason


class PacketKind(NamedTuple):
    """Properties of one packet that decide which packets may be skipped.

    Attributes:
        restart: neither this packet nor later ones in decoding order depend on earlier packets.
        disposable: no frame depends on it, except frames of a higher ``layer``.
        hidden: it gives no frame and is decoded only for other packets.
        layer: temporal layer.
        parameters: parameter sets in it, which later packets may need.
    """

    restart: bool = False
    disposable: bool = False
    hidden: bool = False
    layer: int = 0
    parameters: bytes = b""


KindReader = Callable[[memoryview], PacketKind | None]
"""Function from a packet's bytes to its kind, or to None if they are not understood and nothing may be skipped."""

ORDINARY = PacketKind()


def kind_reader(codec: str, extradata: bytes) -> KindReader:
    """Return the reader of packet kinds for one stream.

    Args:
        codec: FFmpeg's name of the codec. All packets of an unknown codec are ordinary.
        extradata: the codec's configuration from the file's header.
    """
    if codec == "h264" and len(extradata) > 4 and extradata[0] == 1:
        return lambda data: _h264(data, (extradata[4] & 3) + 1)
    if codec == "hevc" and len(extradata) > 21 and extradata[0] == 1:
        return lambda data: _hevc(data, (extradata[21] & 3) + 1)
    return {"vp8": _vp8, "vp9": _vp9}.get(codec, lambda data: ORDINARY)


def _units(data: memoryview, length_size: int) -> Iterator[memoryview]:
    """Yield the NAL units of a packet, each stored after its length. Yield an empty one if a length is invalid."""
    start, end = 0, len(data)
    while start < end:
        length = int.from_bytes(data[start : start + length_size])
        start += length_size
        unit = data[start : start + length] if length <= end - start else data[:0]
        yield unit
        if not unit:
            return
        start += length


def _h264(data: memoryview, length_size: int) -> PacketKind | None:
    slices, parameters = [], b""
    for unit in _units(data, length_size):
        if not unit:
            return None
        kind = unit[0] & 31
        if kind in (1, 5):  # slices of one picture; data partitions (2 to 4) are not analyzed
            slices.append(unit[0] & 127)
        elif kind in (7, 8, 13):
            parameters += bytes(unit)
        elif kind not in (6, 9, 10, 11, 12):
            return None
    if not slices:
        return None
    return PacketKind(
        restart=all(header & 31 == 5 for header in slices),
        disposable=not any(header >> 5 for header in slices),
        parameters=parameters,
    )


def _hevc(data: memoryview, length_size: int) -> PacketKind | None:
    slices, layers, parameters = [], set(), b""
    for unit in _units(data, length_size):
        if len(unit) < 2 or unit[0] & 1 or unit[1] >> 3:  # another view or quality layer
            return None
        kind = unit[0] >> 1
        if kind < 32:
            slices.append(kind)
            layers.add((unit[1] & 7) - 1)
        elif kind in (32, 33, 34):
            parameters += bytes(unit)
        elif kind > 40:
            return None
    if len(layers) != 1:
        return None
    return PacketKind(
        restart=all(kind in (19, 20) for kind in slices),
        disposable=all(kind < 15 and kind % 2 == 0 for kind in slices),
        layer=layers.pop(),
        parameters=parameters,
    )


def _vp8(data: memoryview) -> PacketKind | None:
    if not data:
        return None
    return PacketKind(restart=not data[0] & 1, hidden=not data[0] >> 4 & 1)


def _vp9(data: memoryview) -> PacketKind | None:
    if not data or data[0] >> 6 != 2:
        return None
    # In profile 3 (bits 4 and 5) a reserved bit shifts the others. Key frames of this profile are not detected.
    return PacketKind(restart=data[0] & 0b110000 != 0b110000 and not data[0] & 0b1100)


class PacketEntry(NamedTuple):
    """One packet of a stream.

    Attributes:
        time: presentation time of its frame in ticks of the stream, or None if the file has no times.
        shown: False if the packet is decoded only for other frames, for example outside an edit list.
        kind: what may be skipped around it, or None if unknown.
    """

    time: int | None
    shown: bool
    kind: PacketKind | None


class PacketIndex:
    """Index of all packets of a stream, in decoding order.

    Args:
        entries: the packets.
        reorders: True if the decoder expects a presentation order that differs from the decoding order.
    """

    def __init__(self, entries: Iterable[PacketEntry], reorders: bool) -> None:
        self._entries = list(entries)
        shown = [(entry.time, position) for position, entry in enumerate(self._entries) if entry.shown]
        self.num_frames = len(shown)
        times = [time for time, _ in shown if time is not None]
        # If the decoder reorders, ever-increasing times are decoding times written by a faulty muxer.
        self.has_times = len(set(times)) == len(shown) and not (
            reorders and len(times) > 1 and all(a < b for a, b in pairwise(times))
        )
        self._packet_positions = [position for _, position in sorted(shown, key=lambda pair: pair[0] or 0)]
        kinds = [entry.kind for entry in self._entries if entry.kind is not None]
        # If parameter sets change, they would have to be sent even when their frames are skipped.
        parameters = {kind.parameters for kind in kinds} - {b""}
        self._may_skip = len(kinds) == len(self._entries) and len(parameters) <= 1
        self._highest_layer = max((kind.layer for kind in kinds), default=0)

    def time(self, index: int) -> int | None:
        """Return the presentation time of frame ``index``."""
        return self._entries[self._packet_positions[index]].time

    def shown_times(self, positions: Iterable[int]) -> list[int | None]:
        """Return the sorted presentation times of the frames in the packets at ``positions``."""
        entries = (self._entries[position] for position in positions)
        return sorted((entry.time for entry in entries if entry.shown), key=lambda time: time or 0)

    def needed(self, indices: Sequence[int]) -> list[int]:
        """Return the positions of the packets that must be decoded, in order, to get the frames at ``indices``."""
        wanted = sorted({self._packet_positions[index] for index in indices})
        if not self._may_skip:
            return list(range(wanted[-1] + 1))
        # The first packet is always sent: it names the encoder, and decoders work around known encoder bugs.
        needed, sent = [0], 0
        for position in wanted:
            if position == sent:
                continue
            between = self._since_restart(sent + 1, position)
            needed += [other for other in between if not self._is_disposable(other)] + [position]
            sent = position
        return needed

    def _since_restart(self, begin: int, position: int) -> range:
        """Return the positions from the last restart, or else ``begin``, up to ``position``, which may be a restart."""
        for other in range(position, begin - 1, -1):
            kind = self._entries[other].kind
            if kind is not None and kind.restart:
                return range(other, position)
        return range(begin, position)

    def _is_disposable(self, position: int) -> bool:
        kind = self._entries[position].kind
        return kind is not None and kind.disposable and kind.layer == self._highest_layer


MAX_PACKETS = 2**20
"""Maximum number of packets (nine hours at 30 frames per second), because damaged tables can claim any number."""

DEFAULT_BONUS = 5_000_000  # pixels; FFmpeg weighs the flag of a default stream like this

PLAYLISTS = frozenset({"concat", "dash", "hls", "image2", "imf", "lavfi", "rtsp", "sap", "sdp", "vobsub"})
"""FFmpeg's demuxers of files that name other files or streams."""

# Demuxers that read presentation times from the file. Others guess them, wrongly for reordered frames.
_FORMATS_WITH_TIMES = {"mp4", "matroska", "flv", "gif"}


class PacketStream:
    """The video stream that FFmpeg chooses by itself, for one use in a ``with`` statement. Cover pictures do not count.

    Args:
        path: the file.
        threads: maximum number of threads of the decoder.

    Attributes:
        context: the decoder, which outlives this object.
        codec: FFmpeg's name of the codec.
        aspect: width over height of one stored pixel, or None.
        time_base: seconds of one tick of a packet's times, or None.
        damage: why the packets ended early, or None.

    Raises:
        VideoError: the file is not a video, has no video stream, or its frames are too large.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self.path = path
        self.damage: str | None = None
        self._kinds: dict[PacketKind | None, PacketKind | None] = {}
        self._container = open_container(path)
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
        for number in count():
            if number > MAX_PACKETS:
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

    def _video_stream(self) -> VideoStream:
        stream = preferred_stream(self._container.streams.video)
        if stream is None:
            raise VideoError(self.path, "it has no video stream")
        if stream.codec_context is None:
            raise VideoError(self.path, "FFmpeg has no decoder for its codec")
        return stream

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
        self.time_base: Fraction | None = self._stream.time_base
        self._times_are_read = not _FORMATS_WITH_TIMES.isdisjoint(self._container.format.name.split(","))
        self._read_kind = kind_reader(self.codec, context.extradata or b"")


def preferred_stream(streams: Iterable[VideoStream]) -> VideoStream | None:
    """Return the video stream that FFmpeg chooses by itself, or None. Cover pictures do not count."""
    videos = [stream for stream in streams if not stream.disposition & Disposition.attached_pic]
    return max(videos, key=_preference, default=None)


def frame_damage(frame: av.VideoFrame, size: tuple[int, int]) -> str | None:
    """Return the damage of a frame, or None.

    Args:
        size: width and height of the video's first frame.
    """
    if frame.is_corrupt:
        return "its data is damaged: parts of a frame are lost"
    if size != (frame.width, frame.height):
        return f"its frames change size from {size} to {(frame.width, frame.height)} (width, height)"
    return None


def open_container(path: Path) -> av.container.InputContainer:
    """Open a video file with FFmpeg, which reads this file only.

    Raises:
        VideoError: the path does not lead to a regular file, or the file is not a video.
    """
    with as_video_error(path), _describing_unknown_content(path):
        check_regular(path)
        # "file:" keeps FFmpeg from reading a name with a colon as a protocol.
        return av.open(f"file:{path}", options=_options(), metadata_errors="replace")


@cache
def _options() -> dict[str, str]:
    """Return FFmpeg's options: no playlists, which lead to other files and machines, and no frames above the limit."""
    formats = ",".join(sorted(av.formats_available - PLAYLISTS))
    return {"format_whitelist": formats, "protocol_whitelist": "file", "max_pixels": str(MAX_PIXELS)}


def _preference(stream: VideoStream) -> tuple[bool, int]:
    """Return a value that is highest for the stream that FFmpeg chooses: the largest, with a bonus for the default."""
    context = stream.codec_context
    pixels = 0 if context is None else context.width * context.height
    return bool(stream.frames), pixels + DEFAULT_BONUS * bool(stream.disposition & Disposition.default)


@contextmanager
def _describing_unknown_content(path: Path) -> Iterator[None]:
    """Describe the content of a file that FFmpeg does not recognize, since FFmpeg's own message does not."""
    try:
        yield
    except (av.InvalidDataError, av.EOFError, av.ArgumentError) as error:
        with open_regular(path) as file:
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
