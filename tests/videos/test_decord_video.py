"""Tests of the decord decoder, if it is installed."""

from __future__ import annotations

import sys
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from dmgal.bench.barcode_clips import KINDS, read_barcode, write_clip
from dmgal.errors import DmgalError
from dmgal.videos.decoding.base import VideoError
from dmgal.videos.decoding.video import open_video, read_clip

decord = pytest.importorskip("decord", reason="decord has no wheel for this platform")


@pytest.mark.parametrize("name", ["H.264 closed GOPs", "H.264 many B-frames", "H.264 rotated", "VP9 hidden frames"])
def test_decord_equals_pyav_on_supported_kinds(tmp_path, name):
    path = write_clip(tmp_path, "clip", KINDS[name])
    wanted = [50, 3, 3, 22]
    clip = read_clip(path, lambda n: wanted, decoder="decord")
    exact = read_clip(path, lambda n: wanted)
    assert clip.dtype == torch.uint8 and clip.shape == exact.shape and clip.is_contiguous()
    assert [read_barcode(image) for image in clip.permute(0, 2, 3, 1).numpy()] == wanted
    assert (clip.float() - exact.float()).abs().mean() < 2


@pytest.mark.parametrize("size", [(128, 64), (64, 64)])
def test_non_square_pixels_of_a_rotated_video(tmp_path, size):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height = size
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        stream.set_display_rotation(90)
        for _ in range(3):
            image = np.zeros((size[1], size[0], 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    exact = read_clip(path, lambda n: [0, 2])
    assert exact.shape == (2, 3, 2 * size[0], size[1])
    assert read_clip(path, lambda n: [0, 2], decoder="decord").shape == exact.shape


def test_frame_folders_do_not_need_decord(tmp_path, write_frames, frame_numbers):
    folder = write_frames(tmp_path / "frames", range(4))
    assert frame_numbers(read_clip(folder, lambda n: [3, 1], decoder="decord")) == [3, 1]


def test_unreadable_files_raise_video_error(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError, match="it is text, which begins with 'no video'"):
        open_video(tmp_path / "text.mp4", "decord")
    path = write_clip(tmp_path, "clip", KINDS["AV1"])  # a codec that decord does not support
    with pytest.raises(VideoError, match="Cannot read the video"):
        read_clip(path, lambda n: [0], decoder="decord")


def test_missing_package_error_has_a_remedy(tmp_path, monkeypatch):
    path = write_clip(tmp_path, "clip", KINDS["H.264 closed GOPs"], range(3))
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(DmgalError, match="pip install decord, or use the decoder pyav"):
        open_video(path, "decord")
