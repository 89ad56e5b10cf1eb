"""Tests of folders and zip files of frames, and of images that are too large."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from dmgal.videos.decoding.base import MAX_PIXELS, VideoError
from dmgal.videos.decoding.clip import uniform_frames
from dmgal.videos.decoding.video import open_video, probe_video, read_clip


def test_frame_folders_are_read_in_natural_order(tmp_path, write_frames, frame_numbers):
    folder = write_frames(tmp_path / "clip", range(12))
    (folder / "notes.txt").write_text("not a frame")
    video = open_video(folder)
    assert video.num_frames == 12
    assert frame_numbers(video.read([11, 0, 9, 0])) == [11, 0, 9, 0]


def test_16_bit_gray_frames_are_not_clipped(tmp_path):
    Image.fromarray(np.full((4, 6), 40_000, np.uint16)).save(tmp_path / "1.png")
    assert open_video(tmp_path).read([0]).unique().tolist() == [40_000 >> 8]


def zipped(path: Path, names: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in names.items():
            archive.writestr(name, data)
    return path


def image_bytes(size: tuple[int, int], value: int = 0, **options) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(file, **{"format": "PNG", **options})
    return file.getvalue()


def test_zip_files_of_frames_are_read_in_natural_order(tmp_path):
    names = {f"part{part}/{frame}.png": image_bytes((6, 4), 20 * part + frame) for part in (10, 2) for frame in (10, 9)}
    path = zipped(tmp_path / "frames.ZIP", {**names, "notes.txt": b"none", "__MACOSX/._1.png": b"none"})
    video = open_video(path)
    assert video.num_frames == 4
    clip = video.read([0, 1, 2, 3, 0])
    assert clip.shape == (5, 3, 4, 6)
    assert clip[:, 0, 0, 0].tolist() == [49, 50, 209, 210, 49]
    probe = probe_video(path)
    assert (probe.num_frames, probe.codec, probe.width, probe.height, probe.problem) == (4, "png", 6, 4, None)


def test_exif_orientation_is_applied(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn clockwise
    Image.new("RGB", (8, 4)).save(tmp_path / "1.jpg", exif=turned)
    assert open_video(tmp_path).read([0]).shape == (1, 3, 8, 4)


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Return a TIFF with one directory of tags, types, counts and four bytes with the value or its offset."""
    rows = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + rows + bytes(4)


ORIENTATION = (0x0112, 3, 1, struct.pack("<HH", 6, 0))


@pytest.mark.parametrize(
    ("data", "turned"),
    [
        (exif(ORIENTATION), True),
        (exif((0x010E, 2, 5000, struct.pack("<I", 9999)), ORIENTATION), True),  # a text beyond the end of the file
        (exif(ORIENTATION, (0x0110, 5, 1, struct.pack("<I", 9999))), True),
        (exif(ORIENTATION, (0x9000, 13, 70000, struct.pack("<I", 2**32 - 1))), True),
        (exif((0x0112, 2, 4, b"six\0")), False),
        (exif((0x0112, 3, 1, struct.pack("<HH", 77, 0))), False),
        (exif((0x0112, 3, 3, struct.pack("<I", 9999))), False),
        (exif(ORIENTATION)[:12], False),
        (b"Exif\0\0II*\0" + b"\xff" * 40, False),
        (b"Exif\0\0", False),
    ],
)
def test_damaged_exif_header_with_or_without_orientation(tmp_path, data, turned, recwarn):
    Image.new("RGB", (8, 4)).save(tmp_path / "1.jpg", exif=data)
    assert open_video(tmp_path).read([0]).shape == (1, 3, *((8, 4) if turned else (4, 8)))
    assert not recwarn.list


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations_equal_pillow(tmp_path, orientation):
    turned = Image.Exif()
    turned[0x0112] = orientation
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "1.png", exif=turned)
    with Image.open(tmp_path / "1.png") as image:
        wanted = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(open_video(tmp_path).read([0])[0].permute(1, 2, 0).numpy(), wanted)


COMPRESSIONS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_zip_compressions_intact_and_damaged(tmp_path, compression):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for number in range(3):
            archive.writestr(f"{number}.png", image_bytes((8, 8), number))
        start = archive.infolist()[1].header_offset + 30 + len("1.png")
    assert read_clip(path, range)[:, 0, 0, 0].tolist() == [0, 1, 2]
    whole = path.read_bytes()
    for place in range(start, start + 30):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        assert read_clip(path, range)[:, 0, 0, 0].tolist() in ([0], [0, 1, 2])
    with pytest.raises(VideoError, match=r"then frame 1\.png"):
        path.write_bytes(whole[:start] + bytes(20) + whole[start + 20 :])
        read_clip(path, range, at_least=2)


def test_zip_file_changed_between_reads_raises(tmp_path):
    video = open_video(zipped(tmp_path / "a.zip", {"1.png": image_bytes((4, 4))}))
    zipped(tmp_path / "a.zip", {"2.png": image_bytes((4, 4))})
    with pytest.raises(VideoError, match=r"frame 1\.png: "):
        video.read([0])


def test_broken_frame_ends_the_video(tmp_path):
    frames = {f"{number}.png": image_bytes((4, 4), number) for number in range(10)}
    frames["6.png"] = frames["6.png"][:40]
    path = zipped(tmp_path / "frames.zip", frames)
    (tmp_path / "folder").mkdir()
    for name, data in frames.items():
        (tmp_path / "folder" / name).write_bytes(data)
    for place in (path, tmp_path / "folder"):
        assert read_clip(place, lambda n: uniform_frames(n, 5))[:, 0, 0, 0].tolist() == [1, 3, 5, 7, 9]
        assert read_clip(place, range)[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
        with pytest.raises(VideoError, match=r"only 6 frames decode of 7 wanted; then frame 6\.png"):
            read_clip(place, range, at_least=7)
        probe = probe_video(place)
        assert probe.num_frames == 6 and "6.png" in probe.problem


def test_gray_and_palette_frames_become_rgb(tmp_path):
    for place, mode in enumerate(("L", "P", "RGBA", "1")):
        Image.fromarray(np.full((8, 6, 3), 255, np.uint8)).convert(mode).save(tmp_path / f"{place}.png")
    assert torch.equal(open_video(tmp_path).read(range(4)), torch.full((4, 3, 8, 6), 255, dtype=torch.uint8))


def _huge_png(folder: Path) -> Path:
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    (folder / "frames").mkdir()
    data = bytearray(image_bytes((8, 8)))
    data[16:29] = header
    data[29:33] = zlib.crc32(b"IHDR" + header).to_bytes(4, "big")
    (folder / "frames" / "1.png").write_bytes(data)
    return folder / "frames"


def _large_png(folder: Path) -> Path:
    (folder / "frames").mkdir()
    Image.new("1", (8000, 5000)).save(folder / "frames" / "1.png")
    return folder / "frames"


def _large_gif(folder: Path) -> Path:
    Image.new("P", (8000, 5000)).save(folder / "large.gif")
    return folder / "large.gif"


@pytest.mark.parametrize("make", [_huge_png, _large_png, _large_gif])
def test_too_large_frames_raise_before_allocation(tmp_path, make):
    path = make(tmp_path)
    for read in (probe_video, lambda p: read_clip(p, lambda n: [0])):
        with pytest.raises(VideoError, match=f"{MAX_PIXELS:,}"):
            read(path)


def test_zip_file_with_huge_claimed_size_raises(tmp_path):
    path = zipped(tmp_path / "a.zip", {"1.png": image_bytes((4, 4))})
    data = bytearray(path.read_bytes())
    directory = data.index(b"PK\x01\x02")
    data[directory + 24 : directory + 28] = (2**31).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(VideoError, match=r"1\.png: more than"):
        open_video(path).read([0])


def test_a_picture_with_exif_data_is_a_film_of_one_frame(tmp_path):
    """PyAV has no type for these data of FFmpeg, and refuses all side data of the frame."""
    Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(tmp_path / "a.tiff", exif=Image.Exif())
    assert read_clip(tmp_path / "a.tiff", lambda count: [0]).unique().tolist() == [90]
