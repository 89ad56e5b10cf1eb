"""The view of a file as a player has it: FFmpeg's choice of a stream, every display matrix, every known extension."""

from __future__ import annotations

import itertools
import math
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition

from dmgal.videos import VideoCatalog
from dmgal.videos.catalog.files import VIDEO_EXTENSIONS, VideoFinder, stem_of, videos_in
from dmgal.videos.decoding.base import VideoError, turn_upright
from dmgal.videos.decoding.video import open_video, probe_video, read_clip

MAIN, SMALL, LARGE = (128, 96), (64, 48), (160, 128)
COVER, DEFAULT = Disposition.attached_pic, Disposition.default


def write_streams(path: Path, *streams: tuple[tuple[int, int], int, int]) -> Path:
    """Write streams of ``(size, disposition, number of frames)``. The size of a stream tells which one was read."""
    with av.open(str(path), "w") as container:
        opened = []
        for (width, height), disposition, _ in streams:
            stream = container.add_stream("mjpeg" if disposition & COVER else "mpeg4", rate=25)
            stream.width, stream.height = width, height
            stream.pix_fmt = "yuvj420p" if disposition & COVER else "yuv420p"
            stream.disposition = Disposition(disposition)
            opened.append(stream)
        for stream, (_, _, frames) in zip(opened, streams, strict=True):
            for number in range(frames):
                frame = av.VideoFrame(stream.width, stream.height, stream.pix_fmt)
                frame.pts = number
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("ending", "streams", "shown"),
    [
        ("mkv", [(SMALL, 0, 5), (MAIN, 0, 5)], MAIN),
        ("mkv", [(MAIN, 0, 5), (SMALL, 0, 5)], MAIN),
        ("mp4", [(MAIN, 0, 5), (SMALL, 0, 5)], MAIN),
        ("mp4", [(SMALL, 0, 5), (MAIN, 0, 5)], SMALL),  # the format makes the first one the default
        ("avi", [(SMALL, 0, 5), (MAIN, 0, 5)], MAIN),
        *((ending, [(SMALL, DEFAULT, 5), (MAIN, 0, 5)], SMALL) for ending in ("mp4", "mkv")),
        *((ending, [(MAIN, 0, 5), (SMALL, DEFAULT, 5)], SMALL) for ending in ("mp4", "mkv")),
        *((ending, [(SMALL, DEFAULT, 5), (MAIN, DEFAULT, 5)], MAIN) for ending in ("mp4", "mkv")),
        ("mp4", [(LARGE, COVER, 1), (MAIN, 0, 5)], MAIN),
        ("mp4", [(LARGE, COVER, 1), (SMALL, DEFAULT, 5), (MAIN, DEFAULT, 5)], MAIN),
        ("mp4", [(SMALL, DEFAULT, 1), (MAIN, DEFAULT, 5), (LARGE, COVER, 1)], MAIN),
        ("mp4", [(LARGE, DEFAULT, 0), (MAIN, 0, 5)], MAIN),  # a track without a picture
    ],
)
def test_stream_of_ffmpegs_choice_is_read(tmp_path, ending, streams, shown):
    path = write_streams(tmp_path / f"a.{ending}", *streams)
    probe = probe_video(path)
    assert (probe.width, probe.height) == shown and probe.problem is None
    assert read_clip(path, lambda n: [n - 1]).shape[2:] == shown[::-1]


def test_cover_pictures_alone_are_no_video(tmp_path):
    path = write_streams(tmp_path / "a.mp4", (LARGE, COVER, 1), (SMALL, COVER, 1))
    with pytest.raises(VideoError, match="no video stream"):
        open_video(path)


def with_matrix(path: Path, *values: float) -> Path:
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44  # the display matrix of a version 0 track header
    a, b, c, d = (round(value * 2**16) for value in values)
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def shown_by(image: np.ndarray, a: float, b: float, c: float, d: float) -> np.ndarray:
    """Return the image as the matrix defines it, pixel by pixel."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    x, y = np.rint(a * columns + c * rows).astype(int), np.rint(b * columns + d * rows).astype(int)
    x, y = x - x.min(), y - y.min()
    result = np.zeros((y.max() + 1, x.max() + 1, 3), np.uint8)
    result[y, x] = image
    return result


SIGNS = list(itertools.product((1, -1), repeat=2))
MATRICES = [(p, 0, 0, q) for p, q in SIGNS] + [(0, p, q, 0) for p, q in SIGNS]


@pytest.mark.parametrize("matrix", MATRICES)
def test_every_display_matrix_is_honored(tmp_path, write_video, matrix):
    path = write_video(tmp_path / "a.mp4", range(3))
    plain = open_video(path).read([2])[0].permute(1, 2, 0).numpy()
    with_matrix(path, *matrix)
    shown = open_video(path).read([2])[0].permute(1, 2, 0).numpy()
    assert np.array_equal(shown, shown_by(plain, *matrix))
    probe = probe_video(path)
    assert (probe.height, probe.width) == shown.shape[:2]


@pytest.mark.parametrize("degrees", [0, 90, 180, 270, 3, 87, -40])
@pytest.mark.parametrize("mirror", [1, -1])
def test_other_angles_and_scales_are_shown_by_the_nearest_quarter(degrees, mirror):
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    nearest = 90 * round(degrees / 90)
    for scale in (1, 0.25, 3):
        matrices = []
        for angle, factor in ((degrees, scale), (nearest, 1)):
            cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            matrices.append([factor * mirror * cos, factor * mirror * sin, -factor * sin, factor * cos])
        a, b, c, d = (round(value * 2**16) for value in matrices[0])
        shown = turn_upright(image, struct.pack("=9i", a, b, 0, c, d, 0, 0, 0, 1 << 30))
        assert np.array_equal(shown, shown_by(image, *matrices[1]))
    assert np.array_equal(turn_upright(image, bytes(36)), image) and turn_upright(image, None) is image


KINDS = {
    "mpegts mpeg2video": ".MTS .m2ts .ts .m2t .tp",
    "vob mpeg2video": ".vob .vro",
    "mpeg mpeg2video": ".mpe .mod",
    "mxf mpeg2video": ".mxf",
    "mpeg2video mpeg2video": ".m2v",
    "mpeg1video mpeg1video": ".m1v",
    "asf mpeg4": ".asf",
    "3g2 mpeg4": ".3g2",
    "f4v libx264": ".f4v",
    "nut mpeg4": ".nut",
    "mov mpeg4": ".qt",
    "avi mpeg4": ".divx .xvid",
    "matroska mpeg4": ".mk3d",
    "h264 libx264": ".h264 .avc",
    "yuv4mpegpipe wrapped_avframe": ".y4m",
    "ivf libvpx": ".ivf",
}
WRITABLE = {ending: kind.split() for kind, endings in KINDS.items() for ending in endings.split()}


@pytest.mark.parametrize("ending", WRITABLE)
def test_films_of_known_names_are_listed_and_read(tmp_path, ending):
    (tmp_path / "jump").mkdir()
    path, (kind, codec) = tmp_path / "jump" / f"a{ending}", WRITABLE[ending]
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(10):
            image = np.full((48, 64, 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")))
        container.mux(stream.encode())
    catalog = VideoCatalog.from_folders(tmp_path)
    assert catalog.videos == (f"jump/a{ending}",) and VideoFinder(tmp_path).find("jump/a") == f"jump/a{ending}"
    assert probe_video(path).num_frames == 10
    assert torch.all(read_clip(path, range).float().mean((1, 2, 3)).diff() > 10)


def test_known_extensions_in_any_case(tmp_path):
    for ending in VIDEO_EXTENSIONS:
        (tmp_path / f"a{ending.upper()}").touch()
        assert stem_of(f"x{ending}") == "x"
    assert len(videos_in(tmp_path)) == len(VIDEO_EXTENSIONS) == len(set(VIDEO_EXTENSIONS)) > 60
