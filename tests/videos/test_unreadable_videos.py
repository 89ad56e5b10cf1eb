"""Tests that unreadable videos raise one error with path and reason."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from dmgal.errors import DmgalError
from dmgal.videos.decoding.base import VideoError
from dmgal.videos.decoding.video import open_video, read_clip


def _missing(folder: Path) -> Path:
    return folder / "nothing.mp4"


def _text(folder: Path) -> Path:
    (folder / "text.mp4").write_text("this is no video")
    return folder / "text.mp4"


def _empty(folder: Path) -> Path:
    (folder / "empty.mp4").touch()
    return folder / "empty.mp4"


def _empty_folder(folder: Path) -> Path:
    (folder / "frames").mkdir()
    return folder / "frames"


def _audio(folder: Path) -> Path:
    with av.open(str(folder / "audio.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    return folder / "audio.mp4"


def _broken_frame(folder: Path) -> Path:
    (folder / "frames").mkdir()
    (folder / "frames" / "1.jpg").write_bytes(b"\xff\xd8\xff nothing")
    return folder / "frames"


def _page(folder: Path) -> Path:
    (folder / "a.mp4").write_bytes(b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html><title>404</title></html>\n")
    return folder / "a.mp4"


def _noise(folder: Path) -> Path:
    (folder / "a.mp4").write_bytes(bytes(range(256)) * 9)
    return folder / "a.mp4"


def _empty_frame(folder: Path) -> Path:
    (folder / "0.jpg").write_bytes(b"")
    return folder


def _text_frame(folder: Path) -> Path:
    (folder / "0.jpg").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    return folder


def _noise_frame(folder: Path) -> Path:
    (folder / "0.jpg").write_bytes(bytes(range(256)))
    return folder


def _frames_of_two_sizes(folder: Path) -> Path:
    (folder / "frames").mkdir()
    for size in (8, 9):
        Image.new("RGB", (size, size)).save(folder / "frames" / f"{size}.png")
    return folder / "frames"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_missing, "no such file"),
        (_text, "it is text, which begins with '"),
        (_empty, "it is empty"),
        (_page, "it is text, which begins with '<!DOCTYPE html>'"),
        (_noise, "no video that FFmpeg knows, or its header"),
        (_empty_frame, r"frame 0\.jpg: it is empty"),
        (_text_frame, r"frame 0\.jpg: it is text, which begins with 'version https://git-lfs"),
        (_noise_frame, r"frame 0\.jpg: no jpg or png image"),
        (_empty_folder, "without jpg or png"),
        (_audio, "no video stream"),
        (_broken_frame, "frame 1.jpg"),
        (_frames_of_two_sizes, r"\(8, 8\), \(9, 9\)"),
    ],
)
def test_unreadable_video_raises_with_path_and_reason(tmp_path, make, reason):
    path = make(tmp_path)
    with pytest.raises(VideoError, match=reason) as caught:
        read_clip(path, range)
    message = str(caught.value)
    assert str(path) in message and isinstance(caught.value, DmgalError)
    assert "object at 0x" not in message
    assert all(part in message for part in ("received:", "expected:", "what to do:"))


def test_cover_picture_is_not_a_video(tmp_path, write_video):
    both = tmp_path / "song.mp4"
    with av.open(str(_audio(tmp_path))) as song, av.open(str(both), "w") as writing:
        copied = writing.add_stream_from_template(song.streams.audio[0])
        cover = writing.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt = 16, 16, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        for packet in song.demux(audio=0):
            packet.stream = copied
            writing.mux(packet)
        writing.mux(cover.encode(av.VideoFrame(16, 16, "yuvj420p")))
        writing.mux(cover.encode())
    with pytest.raises(VideoError, match="no video stream"):
        open_video(both)
