"""Tests of exact frames, on files whose frames encode their index, and of the errors for unreadable files."""

from __future__ import annotations

import gc
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch

from dmgal.bench.barcode_clips import KINDS, barcode
from dmgal.bench.barcode_clips import write_clip as write_barcode_clip
from dmgal.bench.fuzz import open_handles
from dmgal.errors import DmgalError
from dmgal.videos.decoding import packets as packet_stream
from dmgal.videos.decoding.base import StaleFrameCountError, UprightRGB, VideoError, shown_size
from dmgal.videos.decoding.clip import uniform_frames
from dmgal.videos.decoding.video import open_video, probe_video, read_clip

NUM_FRAMES = 50
FILES = {
    "b_frames.mp4": ("libx264", {"bf": "3", "g": "12"}),
    "open_gop.mp4": ("libx264", {"x264-params": "open-gop=1:keyint=10:bframes=3"}),
    "b_frames.mkv": ("libx264", {"bf": "3"}),
    "without_pts.avi": ("libx264", {"bf": "2"}),
    "b_frames.avi": ("mpeg4", {"bf": "2"}),
    "hidden_frames.webm": ("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "100k"}),
    "mpeg1.mpg": ("mpeg1video", {"bf": "2"}),
    "animated.gif": ("gif", {}),
}


@pytest.mark.parametrize("name", FILES)
def test_frames_are_exact_in_any_order(tmp_path, write_video, frame_numbers, name):
    codec, options = FILES[name]
    path = write_video(tmp_path / name, range(NUM_FRAMES), codec, options)
    video = open_video(path)
    assert video.num_frames == NUM_FRAMES
    all_frames = video.read(range(NUM_FRAMES))
    assert (
        all_frames.dtype == torch.uint8 and all_frames.shape == (NUM_FRAMES, 3, 64, 128) and all_frames.is_contiguous()
    )
    assert frame_numbers(all_frames) == list(range(NUM_FRAMES))
    for wanted in ([49, 0, 17, 17, 3], [1], list(reversed(range(NUM_FRAMES))), uniform_frames(NUM_FRAMES, 8)):
        clip = open_video(path).read(wanted)
        assert frame_numbers(clip) == wanted
        assert torch.equal(clip, all_frames[wanted])


def test_variable_frame_rate_counts_frames_not_seconds(tmp_path, write_video, frame_numbers):
    times = [i + i * i // 7 for i in range(30)]
    path = write_video(tmp_path / "vfr.mp4", range(30), options={"bf": "2"}, times=times)
    assert open_video(path).num_frames == 30
    assert frame_numbers(open_video(path).read([0, 11, 29])) == [0, 11, 29]


def test_header_without_frame_count(tmp_path, write_video, frame_numbers):
    fragmented = {"movflags": "frag_keyframe+empty_moov"}
    path = write_video(tmp_path / "fragmented.mp4", range(20), options={"g": "5"}, muxer_options=fragmented)
    assert open_video(path).num_frames == 20
    assert frame_numbers(open_video(path).read([19, 2])) == [19, 2]


@pytest.mark.parametrize(
    ("matrix", "turns"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1), ((1, 0, 0, 1), 0)]
)
def test_rotation_is_honored(tmp_path, write_video, matrix, turns):
    path = write_video(tmp_path / "turned.mp4", range(5))
    plain = open_video(path).read([2])
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44  # the display matrix of a version 0 track header
    a, b, c, d = (value << 16 for value in matrix)
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    assert torch.equal(open_video(path).read([2]), torch.rot90(plain, turns, (2, 3)))


def test_non_square_pixels_are_stretched(tmp_path):
    clips = {}
    for aspect, width in ((Fraction(1), 128), (Fraction(3, 2), 192)):
        path = tmp_path / f"{width}.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
            stream.codec_context.sample_aspect_ratio = aspect
            container.mux(stream.encode(av.VideoFrame.from_ndarray(barcode(5), format="rgb24")))
            container.mux(stream.encode())
        clips[width] = open_video(path).read([0])
        assert clips[width].shape == (1, 3, 64, width)
        probe = probe_video(path)
        assert (probe.width, probe.height) == (width, 64)
    expected = torch.nn.functional.interpolate(clips[128].float(), (64, 192), mode="bilinear")
    assert (clips[192].float() - expected).abs().mean() < 8


@pytest.mark.parametrize(
    ("aspect", "size"),
    [
        (None, (340, 256)),
        (Fraction(0), (340, 256)),
        (Fraction(1024, 765), (455, 256)),
        (Fraction(1, 2), (340, 512)),
        (Fraction(100, 1), (340, 256)),  # implausible
    ],
)
def test_shown_size_never_shrinks(aspect, size):
    assert shown_size(340, 256, aspect) == size


def test_truncated_file_is_used_up_to_the_cut(tmp_path, write_video, frame_numbers):
    front = {"movflags": "faststart"}  # puts the index at the start, so that it survives the cut
    path = write_video(tmp_path / "cut.mp4", range(NUM_FRAMES), options={"bf": "0"}, muxer_options=front)
    data = path.read_bytes()
    start = data.index(b"mdat")
    path.write_bytes(data[: start + (len(data) - start) // 2])
    video = open_video(path)
    assert 5 < video.num_frames < NUM_FRAMES - 5
    assert "cut short" in video.damage
    assert frame_numbers(video.read(range(video.num_frames))) == list(range(video.num_frames))
    with pytest.raises(
        VideoError, match=rf"only {video.num_frames} frames decode of 49 wanted; then its data is damag"
    ):
        read_clip(path, lambda n: [n - 1], at_least=49)


def test_damage_ends_video_and_frames_are_chosen_again(tmp_path, write_video, frame_numbers):
    path = write_video(tmp_path / "damaged.mp4", range(NUM_FRAMES), options={"bf": "0"})
    with av.open(str(path)) as container:
        packets = [packet.pos for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    data[packets[30] : packets[30] + 4] = b"\xff" * 4  # a unit longer than its packet
    path.write_bytes(data)

    video = open_video(path)
    assert video.num_frames == NUM_FRAMES and video.damage is None
    assert frame_numbers(video.read([4, 29])) == [4, 29]
    with pytest.raises(StaleFrameCountError, match="30 frames decode, not 50 as its packets say"):
        video.read([NUM_FRAMES - 1])
    assert video.num_frames == 30 and video.damage is not None
    assert frame_numbers(video.read([29, 0])) == [29, 0]

    seen: list[int] = []

    def choose(num_frames: int) -> list[int]:
        seen.append(num_frames)
        return uniform_frames(num_frames, 8)

    assert frame_numbers(read_clip(path, choose, at_least=8)) == uniform_frames(30, 8)
    assert seen == [NUM_FRAMES, 30]
    with pytest.raises(VideoError, match="only 30 frames decode of 31 wanted"):
        read_clip(path, lambda n: uniform_frames(n, 31), at_least=31)


def test_short_undamaged_video_is_used(tmp_path, write_video, frame_numbers):
    path = write_video(tmp_path / "short.mp4", range(3))
    assert frame_numbers(read_clip(path, lambda n: uniform_frames(n, 6), at_least=6)) == [0, 0, 1, 1, 2, 2]


def test_indices_out_of_range_raise(tmp_path, write_video, write_frames):
    for path in (write_video(tmp_path / "a.mp4", range(4)), write_frames(tmp_path / "frames", range(4))):
        for wrong in ([4], [-1], []):
            with pytest.raises(IndexError):
                open_video(path).read(wrong)


def test_probe_counts_decodable_frames(tmp_path, write_video):
    path = write_video(tmp_path / "clip.mp4", range(30), options={"bf": "2"})
    probe = probe_video(path)
    assert (probe.num_frames, probe.codec, probe.width, probe.height) == (30, "h264", 128, 64)
    assert probe.rotation == 0 and probe.problem is None

    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    data[places[20][0] : places[20][0] + places[20][1]] = bytes(places[20][1])
    path.write_bytes(data)
    probe = probe_video(path)
    assert 15 <= probe.num_frames <= 20 and "damaged" in probe.problem

    turned = write_barcode_clip(tmp_path, "turned", KINDS["H.264 rotated"], range(4))
    probe = probe_video(turned)
    assert (probe.rotation, probe.width, probe.height) == (270, 64, 128)


def test_changing_frame_size_ends_video(tmp_path):
    both = tmp_path / "grows.h264"  # in this format two files can be concatenated
    for size in (64, 96):
        part = tmp_path / f"{size}.h264"
        with av.open(str(part), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
            for _ in range(5):
                container.mux(stream.encode(av.VideoFrame(size, size, "yuv420p")))
            container.mux(stream.encode())
        with both.open("ab") as file:
            file.write(part.read_bytes())
    assert read_clip(both, lambda n: uniform_frames(n, 3)).shape == (3, 3, 64, 64)
    probe = probe_video(both)
    assert probe.num_frames == 5 and "change size from (64, 64) to (96, 96)" in probe.problem


def test_too_many_packets_raise(tmp_path, write_video, monkeypatch):
    monkeypatch.setattr(packet_stream, "MAX_PACKETS", 20)
    assert open_video(write_video(tmp_path / "short.mp4", range(19))).num_frames == 19
    with pytest.raises(VideoError, match="more than 20 packets"):
        open_video(write_video(tmp_path / "long.mp4", range(21)))


def test_metadata_with_unknown_encoding(tmp_path, write_video, frame_numbers):
    path = write_video(tmp_path / "a.avi", range(9), "mpeg4")
    data = bytearray(path.read_bytes())
    start = data.index(b"Lavf")
    data[start : start + 4] = b"\xff\xe9\x80\xfe"
    path.write_bytes(data)
    assert frame_numbers(open_video(path).read([8, 2])) == [8, 2]


def test_unusual_file_names(tmp_path, write_video, frame_numbers):
    for name in ("it's one.mp4", "http:two.mp4", "percent %d.mp4", "drei Füße ☃.mp4"):
        path = write_video(tmp_path / "plain.mp4", range(4)).rename(tmp_path / name)
        assert frame_numbers(open_video(path).read([3])) == [3]


READ_AS_NOBODY = """
import os, sys
from dmgal.videos.decoding.video import VideoError, read_clip
if os.geteuid() == 0:  # permissions do not bind the superuser
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for path in sys.argv[1:]:
    try:
        read_clip(path, lambda n: [0])
        print("read")
    except VideoError as error:
        print("Permission denied" if "received: Permission denied" in str(error) else error)
"""


def test_files_and_folders_without_permission(write_video, write_frames):
    with tempfile.TemporaryDirectory() as name:  # pytest's own folder is closed to other users
        here = Path(name)
        here.chmod(0o755)
        path, folder = write_video(here / "a.mp4", range(3)), write_frames(here / "frames", range(3))
        copy = Path(shutil.copy(path, here / "open.mp4"))
        copy.chmod(0o644)
        for place in (path, folder):
            place.chmod(0)
        command = [sys.executable, "-c", READ_AS_NOBODY, *map(str, (path, folder, copy))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        folder.chmod(0o700)
    assert done.stdout.splitlines() == ["Permission denied", "Permission denied", "read"], done.stderr[-2000:]


def test_links_are_followed(tmp_path, write_video, frame_numbers):
    (tmp_path / "link.mp4").symlink_to(write_video(tmp_path / "a.mp4", range(4)))
    assert frame_numbers(open_video(tmp_path / "link.mp4").read([2])) == [2]


@pytest.mark.parametrize(("decoder", "threads"), [("opencv", 1), ("pyav", 0)])
def test_unknown_options_are_named_in_the_error(tmp_path, write_video, decoder, threads):
    path = write_video(tmp_path / "a.mp4", range(3))
    with pytest.raises(DmgalError, match=f"decoder='{decoder}', threads={threads}"):
        open_video(path, decoder, threads)


def test_no_open_handles_or_threads_remain(tmp_path, write_video):
    path = write_video(tmp_path / "a.mp4", range(30), options={"bf": "2"})
    open_video(path).read([0])
    gc.collect()  # what earlier tests left would end at any time
    threads = len(os.listdir("/proc/self/task"))
    videos = [open_video(path, threads=2) for _ in range(5)]
    for video in videos:
        video.read([20])
        video.read([3])
    assert not open_handles(path)
    del videos, video
    assert len(os.listdir("/proc/self/task")) <= threads
    assert threading.active_count() <= threads


@pytest.mark.parametrize("name", ["H.264 closed GOPs", "HEVC closed GOPs", "VP9 hidden frames", "AV1", "MPEG-2"])
def test_thread_limit_is_respected(tmp_path, monkeypatch, name):
    path = write_barcode_clip(tmp_path, "clip", KINDS[name])
    before, most = len(os.listdir("/proc/self/task")), {1: 0, 3: 0}
    convert = UprightRGB.__call__
    for threads in most:

        def counting(self, frame, threads=threads):
            most[threads] = max(most[threads], len(os.listdir("/proc/self/task")) - before)
            return convert(self, frame)

        monkeypatch.setattr(UprightRGB, "__call__", counting)
        read_clip(path, range, threads=threads)
    assert most[1] == 0, "one thread is the caller's own"
    assert most[3] <= 4, "three workers and one that distributes the work"
