"""Small encoded videos of many kinds. Each frame shows its number as a barcode that survives lossy coding."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

BITS = 8
HEIGHT, WIDTH = 64, 128
NUM_FRAMES = 60
FRAMES_PER_SECOND = 25

_EDITED_OUT = 7


@dataclass(frozen=True)
class ClipKind:
    """Kind of clip: container, codec and their options.

    Attributes:
        suffix: file suffix, which selects the container.
        codec: FFmpeg's name of the encoder.
        options: options of the encoder.
        muxer_options: options of the container.
        pixels: the stored pixel format.
        times: function from a frame's number to its display time in 25ths of a second.
        patch: function that edits the bytes of the written file.
        first: the number of the first frame shown.
    """

    suffix: str
    codec: str
    options: dict[str, str] = field(default_factory=dict)
    muxer_options: dict[str, str] = field(default_factory=dict)
    pixels: str = "yuv420p"
    times: Callable[[int], int] = int
    patch: Callable[[bytearray], None] | None = None
    first: int = 0


def _x264(parameters: str) -> dict[str, str]:
    return {"x264-params": f"threads=1:{parameters}", "preset": "fast"}


def _x265(parameters: str) -> dict[str, str]:
    return {"x265-params": f"log-level=none:pools=none:frame-threads=1:{parameters}", "preset": "ultrafast"}


def _turn(data: bytearray) -> None:
    """Set a quarter turn in the display matrix of a version 0 track header (ISO 14496-12, 8.3.2)."""
    start = data.index(b"tkhd") + 44
    data[start : start + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)


def _begin_later(data: bytearray) -> None:
    """Let the edit list begin later, within a group of pictures (ISO 14496-12, 8.6.6)."""
    start = data.index(b"elst") + 12
    duration, media_time = struct.unpack_from(">Ii", data, start)
    late_by = _EDITED_OUT * 1000 // FRAMES_PER_SECOND, _EDITED_OUT * 512  # movie and media ticks, as FFmpeg writes them
    struct.pack_into(">Ii", data, start, duration - late_by[0], media_time + late_by[1])


_OPEN_GOPS = _x264("open-gop=1:keyint=10:min-keyint=1:bframes=3:b-adapt=0")

KINDS = {
    "H.264 closed GOPs": ClipKind(".mp4", "libx264", _x264("keyint=12:bframes=3")),
    "H.264 one long GOP": ClipKind(".mp4", "libx264", _x264("keyint=250:bframes=3")),
    "H.264 open GOPs": ClipKind(".mp4", "libx264", _OPEN_GOPS),
    "H.264 open GOPs, mkv": ClipKind(".mkv", "libx264", _OPEN_GOPS),
    "H.264 many B-frames": ClipKind(".mov", "libx264", _x264("keyint=40:bframes=8:b-adapt=0:b-pyramid=normal:ref=6")),
    "H.264 temporal direct": ClipKind(
        ".mp4", "libx264", _x264("keyint=25:bframes=4:b-adapt=0:direct=temporal:slices=3")
    ),
    "H.264 without B-frames": ClipKind(".mp4", "libx264", _x264("keyint=15:bframes=0")),
    "H.264 intra refresh": ClipKind(".mp4", "libx264", _x264("intra-refresh=1:keyint=20:bframes=2")),
    "H.264 interlaced": ClipKind(".mp4", "libx264", _x264("interlaced=1:keyint=20:bframes=2")),
    "H.264 variable frame rate": ClipKind(".mp4", "libx264", _x264("keyint=20"), times=lambda i: i + i * i // 7),
    "H.264 edit list": ClipKind(".mp4", "libx264", _x264("keyint=20"), patch=_begin_later, first=_EDITED_OUT),
    "H.264 rotated": ClipKind(".mp4", "libx264", _x264("keyint=20"), patch=_turn),
    "H.264 fragmented": ClipKind(".mp4", "libx264", _x264("keyint=20"), {"movflags": "frag_keyframe+empty_moov"}),
    "H.264, avi": ClipKind(".avi", "libx264", _x264("keyint=20:bframes=2")),
    "H.264, flv": ClipKind(".flv", "libx264", _x264("keyint=20:bframes=2")),
    "HEVC open GOPs": ClipKind(".mp4", "libx265", _x265("keyint=12:bframes=3:open-gop=1")),
    "HEVC closed GOPs": ClipKind(".mkv", "libx265", _x265("keyint=12:bframes=3:open-gop=0")),
    "HEVC temporal layers": ClipKind(".mp4", "libx265", _x265("keyint=60:bframes=3:rc-lookahead=30:temporal-layers=3")),
    "HEVC 10 bit": ClipKind(".mp4", "libx265", _x265("keyint=20"), pixels="yuv420p10le"),
    "VP8 hidden frames": ClipKind(
        ".webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "20", "b": "200k"}
    ),
    "VP9 hidden frames": ClipKind(".webm", "libvpx-vp9", {"lag-in-frames": "16", "g": "20", "cpu-used": "8"}),
    "AV1": ClipKind(".mkv", "libsvtav1", {"preset": "12", "g": "20", "svtav1-params": "lp=1"}),
    "MPEG-4 B-frames": ClipKind(".mp4", "mpeg4", {"bf": "2", "g": "12"}),
    "MPEG-4 B-frames, avi": ClipKind(".avi", "mpeg4", {"bf": "2", "g": "12"}),
    "MPEG-1": ClipKind(".mpg", "mpeg1video", {"bf": "2"}),
    "MPEG-2": ClipKind(".mpg", "mpeg2video", {"bf": "2", "g": "15"}),
    "MPEG-4, 3gp": ClipKind(".3gp", "mpeg4"),
    "Motion JPEG": ClipKind(".avi", "mjpeg", pixels="yuvj420p"),
    "GIF": ClipKind(".gif", "gif", pixels="rgb8"),
}


def barcode(number: int) -> NDArray[np.uint8]:
    """Return an image ``(64, 128, 3)``: ``number`` in binary in its upper half, moving noise below."""
    rows, columns = np.mgrid[: HEIGHT // 2, :WIDTH]
    texture = 128 + 50 * np.sin((columns - 2.3 * number) / 5) + 40 * np.sin((rows + columns / 3 + number) / 4)
    noise = np.random.default_rng(number).normal(scale=6, size=texture.shape)
    lower = np.stack([texture + noise, np.roll(texture, 9, 1) + noise, 255 - texture], -1)
    bits = [255 * (number >> bit & 1) for bit in range(BITS)]
    upper = np.repeat(np.array(bits), WIDTH // BITS)[None, :, None].repeat(HEIGHT // 2, 0).repeat(3, 2)
    return np.concatenate([upper, lower.clip(0, 255)]).astype(np.uint8)


def read_barcode(image: NDArray[np.uint8]) -> int:
    """Return the number in a frame ``(H, W, 3)``, upright or a quarter turn clockwise."""
    if image.shape[0] > image.shape[1]:
        image = np.rot90(image)
    cells = image[: HEIGHT // 2].mean(2).reshape(HEIGHT // 2, BITS, -1)  # (H/2, BITS, W/BITS)
    return sum(1 << bit for bit in range(BITS) if cells[4:-4, bit, 4:-4].mean() > 128)


def write_clip(folder: Path, name: str, kind: ClipKind, numbers: Sequence[int] = range(NUM_FRAMES)) -> Path:
    """Write the barcodes of ``numbers`` as one clip, each shown at the time of its place."""
    path = folder / f"{name}{kind.suffix}"
    with av.open(str(path), "w", options=kind.muxer_options) as container:
        stream = container.add_stream(kind.codec, rate=FRAMES_PER_SECOND, options=kind.options)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, kind.pixels
        stream.codec_context.thread_count = 1
        for frame in _frames(numbers, kind):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if kind.patch is not None:
        data = bytearray(path.read_bytes())
        kind.patch(data)
        path.write_bytes(data)
    return path


def _frames(numbers: Sequence[int], kind: ClipKind) -> Iterator[av.VideoFrame]:
    for place, number in enumerate(numbers):
        frame = av.VideoFrame.from_ndarray(barcode(number), format="rgb24")
        frame.pts, frame.time_base = kind.times(place), Fraction(1, FRAMES_PER_SECOND)
        yield frame
