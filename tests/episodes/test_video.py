"""Frame exactness on files whose frames carry their number, and one clean error for whatever cannot be read."""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from dmgal.episodes import video as video_module
from dmgal.episodes.frames import uniform_frames
from dmgal.episodes.video import StaleFrameCountError, VideoError, open_video, read_clip
from dmgal.errors import DmgalError

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
def test_every_frame_is_found_in_every_order(tmp_path, write_video, frame_numbers, name):
    codec, options = FILES[name]
    path = write_video(tmp_path / name, range(NUM_FRAMES), codec, options)
    everything = open_video(path)
    assert everything.num_frames == NUM_FRAMES
    whole = everything.read(range(NUM_FRAMES))
    assert whole.dtype == torch.uint8 and whole.shape == (NUM_FRAMES, 3, 64, 128) and whole.is_contiguous()
    assert frame_numbers(whole) == list(range(NUM_FRAMES))
    for wanted in ([49, 0, 17, 17, 3], [1], list(reversed(range(NUM_FRAMES))), uniform_frames(NUM_FRAMES, 8)):
        clip = open_video(path).read(wanted)
        assert frame_numbers(clip) == wanted
        assert torch.equal(clip, whole[wanted])


def test_variable_frame_rate_counts_frames_not_seconds(tmp_path, write_video, frame_numbers):
    times = [i + i * i // 7 for i in range(30)]
    path = write_video(tmp_path / "vfr.mp4", range(30), options={"bf": "2"}, times=times)
    assert open_video(path).num_frames == 30
    assert frame_numbers(open_video(path).read([0, 11, 29])) == [0, 11, 29]


def test_header_without_a_frame_count(tmp_path, write_video, frame_numbers):
    fragmented = {"movflags": "frag_keyframe+empty_moov"}
    path = write_video(tmp_path / "fragmented.mp4", range(20), options={"g": "5"}, muxer_options=fragmented)
    assert open_video(path).num_frames == 20
    assert frame_numbers(open_video(path).read([19, 2])) == [19, 2]


def test_only_the_wanted_frames_are_converted_and_decoding_stops_at_the_last(tmp_path, write_video, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", range(NUM_FRAMES), options={"bf": "0", "g": "50"})
    video = open_video(path)
    converted, decoded = [], []
    upright, frames = video_module._upright_rgb, video._decoded
    monkeypatch.setattr(video_module, "_upright_rgb", lambda f, r: converted.append(f.pts) or upright(f, r))
    monkeypatch.setattr(video, "_decoded", lambda: (decoded.append(frame) or frame for frame in frames()))
    video.read([3, 9, 3])
    assert len(converted) == 2
    assert len(decoded) == 10


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


def test_frame_folders_are_read_in_natural_order(tmp_path, write_frames, frame_numbers):
    folder = write_frames(tmp_path / "clip", range(12))
    (folder / "notes.txt").write_text("not a frame")
    video = open_video(folder)
    assert video.num_frames == 12
    assert frame_numbers(video.read([11, 0, 9, 0])) == [11, 0, 9, 0]


def test_gray_and_palette_frames_become_rgb(tmp_path):
    for place, mode in enumerate(("L", "P", "RGBA", "1")):
        Image.fromarray(np.full((8, 6, 3), 255, np.uint8)).convert(mode).save(tmp_path / f"{place}.png")
    assert torch.equal(open_video(tmp_path).read(range(4)), torch.full((4, 3, 8, 6), 255, dtype=torch.uint8))


def test_a_file_that_was_cut_short_is_used_up_to_there(tmp_path, write_video, frame_numbers):
    front = {"movflags": "faststart"}  # the index in front, so that it outlives the cut
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


def test_damage_ends_a_video_and_frames_are_chosen_anew(tmp_path, write_video, frame_numbers):
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


def test_a_short_but_whole_video_is_used(tmp_path, write_video, frame_numbers):
    path = write_video(tmp_path / "short.mp4", range(3))
    assert frame_numbers(read_clip(path, lambda n: uniform_frames(n, 6), at_least=6)) == [0, 0, 1, 1, 2, 2]


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


def _frames_of_two_sizes(folder: Path) -> Path:
    (folder / "frames").mkdir()
    for size in (8, 9):
        Image.new("RGB", (size, size)).save(folder / "frames" / f"{size}.png")
    return folder / "frames"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_missing, "no such file"),
        (_text, "Invalid data"),
        (_empty, "Invalid data|End of file"),
        (_empty_folder, "without jpg or png"),
        (_audio, "no video stream"),
        (_broken_frame, "frame 1.jpg"),
        (_frames_of_two_sizes, r"\(8, 8\), \(9, 9\)"),
    ],
)
def test_what_cannot_be_read_is_one_error_with_path_and_reason(tmp_path, make, reason):
    path = make(tmp_path)
    with pytest.raises(VideoError, match=reason) as caught:
        read_clip(path, range)
    message = str(caught.value)
    assert str(path) in message and isinstance(caught.value, DmgalError)
    assert all(part in message for part in ("received:", "expected:", "what to do:"))


def test_indices_outside_are_refused(tmp_path, write_video, write_frames):
    for path in (write_video(tmp_path / "a.mp4", range(4)), write_frames(tmp_path / "frames", range(4))):
        for wrong in ([4], [-1], []):
            with pytest.raises(IndexError):
                open_video(path).read(wrong)


def test_odd_names(tmp_path, write_video, frame_numbers):
    for name in ("it's one.mp4", "http:two.mp4", "percent %d.mp4", "drei Füße ☃.mp4"):
        path = write_video(tmp_path / "plain.mp4", range(4)).rename(tmp_path / name)
        assert frame_numbers(open_video(path).read([3])) == [3]


def test_nothing_stays_open_and_no_thread_is_left(tmp_path, write_video):
    path = write_video(tmp_path / "a.mp4", range(30), options={"bf": "2"})
    open_video(path).read([0])
    handles, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    videos = [open_video(path) for _ in range(5)]
    for video in videos:
        video.read([20])
    assert len(os.listdir("/proc/self/fd")) == handles
    assert len(os.listdir("/proc/self/task")) == threads
    assert threading.active_count() <= threads


CASES = {
    "animated.gif": (36, 36, (150, 200)),
    "av1.mkv": (125, 125, (360, 640)),
    "awkward ' name.mov": (123, 123, (480, 640)),
    "four_frames_50px.mov": (4, 4, (50, 50)),
    "fragmented_header_says_0_frames.mp4": (10, 10, (720, 1280)),
    "h263.3gp": (74, 74, (144, 176)),
    "hevc_10bit.mp4": (30, 30, (200, 200)),
    "non_utf8_metadata.avi": (84, 83, (240, 320)),
    "portrait_rotated.MOV": (62, 62, (568, 320)),
    "rotated_90.mov": (3, 3, (568, 320)),
    "truncated_28_of_50_frames.mp4": (50, 28, (720, 1280)),
    "v_ApplyEyeMakeup_g01_c01.avi": (164, 164, (240, 320)),
    "variable_frame_rate.mp4": (32, 32, (256, 340)),
    "very_short.mp4": (36, 36, (240, 320)),
    "vp8_no_frame_count.webm": (120, 120, (240, 320)),
}


@pytest.mark.parametrize("name", [*CASES, "empty.flv", "not_a_video.mp4"])
def test_videos_of_the_wild(test_data, name):
    path = test_data / "videos" / "decoder_cases" / name
    if name not in CASES:
        with pytest.raises(VideoError, match="Invalid data"):
            open_video(path)
        return
    packets, frames, size = CASES[name]
    seen: list[int] = []

    def choose(num_frames: int) -> list[int]:
        seen.append(num_frames)
        return uniform_frames(num_frames, 8)

    clip = read_clip(path, choose, at_least=8)
    assert clip.shape == (8, 3, *size)
    assert seen == ([packets] if packets == frames else [packets, frames])


def test_every_decoder_case_is_looked_at(test_data):
    found = {path.name for path in (test_data / "videos" / "decoder_cases").iterdir()}
    assert len(found) == 17
    assert found == {*CASES, "empty.flv", "not_a_video.mp4"}
