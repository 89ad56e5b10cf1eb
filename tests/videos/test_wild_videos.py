"""Real files that are difficult to decode: each is read completely, or rejected with a reason."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from dmgal.videos.decoding.base import VideoError
from dmgal.videos.decoding.clip import uniform_frames
from dmgal.videos.decoding.video import open_video, probe_video, read_clip

# Number of packets, number of decoded frames, height and width, rotation in degrees.
CASES = {
    "animated.gif": (36, 36, (150, 200), 0),
    "av1.mkv": (125, 125, (360, 640), 0),
    "awkward ' name.mov": (123, 123, (480, 640), 0),
    "four_frames_50px.mov": (4, 4, (50, 50), 0),
    "fragmented_header_says_0_frames.mp4": (10, 10, (720, 1280), 0),
    "h263.3gp": (74, 74, (144, 176), 0),
    "hevc_10bit.mp4": (30, 30, (200, 200), 0),
    "non_utf8_metadata.avi": (84, 83, (240, 320), 0),
    "portrait_rotated.MOV": (62, 62, (568, 320), 270),
    "rotated_90.mov": (3, 3, (568, 320), 270),
    "truncated_28_of_50_frames.mp4": (50, 28, (720, 1280), 0),
    "v_ApplyEyeMakeup_g01_c01.avi": (164, 164, (240, 320), 0),
    "variable_frame_rate.mp4": (32, 32, (256, 455), 0),  # nonsquare pixels
    "very_short.mp4": (36, 36, (240, 320), 0),
    "vp8_no_frame_count.webm": (120, 120, (240, 320), 0),
}


@pytest.mark.parametrize("name", [*CASES, "empty.flv", "not_a_video.mp4"])
def test_difficult_videos(test_data, name):
    path = test_data / "videos" / "decoder_cases" / name
    if name not in CASES:
        with pytest.raises(VideoError, match="no video that FFmpeg knows, or its header or index is damaged"):
            open_video(path)
        return
    packets, frames, size, rotation = CASES[name]
    seen: list[int] = []

    def choose(num_frames: int) -> list[int]:
        seen.append(num_frames)
        return uniform_frames(num_frames, 8)

    clip = read_clip(path, choose, at_least=8)
    assert clip.shape == (8, 3, *size)
    assert seen == ([packets] if packets == frames else [packets, frames])

    probe = probe_video(path)
    assert (probe.num_frames, (probe.height, probe.width), probe.rotation) == (frames, size, rotation)
    assert (probe.problem is not None) == name.startswith("truncated")

    wanted = frozenset(uniform_frames(frames, 8))
    plain = plainly_decoded(path, wanted)
    if plain[0].shape[1:] == size:  # square pixels
        assert torch.equal(clip, torch.stack([plain[index] for index in uniform_frames(frames, 8)]))


def plainly_decoded(path: Path, wanted: frozenset[int]) -> dict[int, torch.Tensor]:
    """Return the wanted frames and frame 0, ``(3, H, W)``, by a plain loop over all frames."""
    images = {}
    with av.open(f"file:{path}", metadata_errors="replace") as container:
        container.streams.video[0].codec_context.thread_count = 1
        for index, frame in enumerate(container.decode(video=0)):
            if index in wanted or not index:
                image = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                images[index] = torch.from_numpy(image.copy()).permute(2, 0, 1)
            if index == max(wanted):
                break
    return images


def test_every_decoder_case_is_tested(test_data):
    found = {path.name for path in (test_data / "videos" / "decoder_cases").iterdir()}
    assert len(found) == 17
    assert found == {*CASES, "empty.flv", "not_a_video.mp4"}


def test_real_frame_folders(test_data):
    folders = sorted((test_data / "videos" / "ssv2_mini").glob("*/*/*"))
    assert len(folders) == 150
    for folder in folders[::15]:
        assert read_clip(folder, lambda n: uniform_frames(n, 8), at_least=8).shape[:2] == (8, 3)
        assert probe_video(folder).problem is None
