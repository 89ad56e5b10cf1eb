"""Clips that are a segment of a file: exactly the frames of the file inside it, for every decoder, and clear errors."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from dmgal.errors import DmgalError
from dmgal.videos import VideoCatalog
from dmgal.videos.annotations.segment import Span, file_and_span, parse_time
from dmgal.videos.catalog.files import content_hash, quick_hash, stamp
from dmgal.videos.dataset import ClipSource, VideoDataset
from dmgal.videos.decoding import clip as transforms
from dmgal.videos.decoding.base import VideoError
from dmgal.videos.decoding.clip import FrameSampler
from dmgal.videos.decoding.segments import frame_times
from dmgal.videos.decoding.stream import TimedFrames
from dmgal.videos.decoding.video import open_video, probe_video, read_clip
from dmgal.videos.store.build import build_store
from dmgal.videos.store.content import EvaluationClips


@pytest.fixture(scope="module")
def film(tmp_path_factory, write_video) -> Path:
    """25 frames at 25 per second, which show their numbers, with frames that are stored in another order."""
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4", range(25), options={"bf": "2", "g": "12"})


def numbers(path: str | Path, frame_numbers, decoder="pyav") -> list[int]:
    return frame_numbers(read_clip(path, range, decoder=decoder))


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize(
    ("segment", "frames"),
    [
        ("t=0,1", range(25)),
        ("t=0.2,0.4", range(5, 10)),
        ("t=0.199,0.401", range(5, 10)),  # rounded times choose the same frames
        ("t=0.219,0.259", range(5, 6)),
        ("t=0.9,1.4", range(22, 25)),  # tools measure the length of the sound
        ("frames=7,9", range(7, 9)),
        ("frames=20,30", range(20, 25)),
    ],
)
def test_a_segment_is_the_frames_inside_it(film, frame_numbers, decoder, segment, frames):
    if decoder == "decord":
        pytest.importorskip("decord", reason="decord has no wheel for this machine")
    assert numbers(f"{film}#{segment}", frame_numbers, decoder) == list(frames)


def test_the_sampler_samples_inside_the_segment(film, frame_numbers):
    frames = FrameSampler(4, lambda clip: clip)
    clip = frames.clip(lambda choose: read_clip(f"{film}#t=0.4,0.8", choose))
    assert frame_numbers(clip) == [11, 13, 16, 18]


def test_adjacent_segments_share_no_frame_and_lose_none(film, frame_numbers):
    cuts = [0, 0.03, 0.217, 0.5001, 1]
    parts = [numbers(f"{film}#t={a},{b}", frame_numbers) for a, b in pairwise(cuts)]
    assert [number for part in parts for number in part] == list(range(25))


@pytest.mark.parametrize(
    "name",
    ["variable_frame_rate.mp4", "v_ApplyEyeMakeup_g01_c01.avi", "vp8_no_frame_count.webm", "h263.3gp", "animated.gif"],
)
def test_times_from_headers_are_those_of_decoding(test_data, name):
    path = test_data / "videos" / "decoder_cases" / name
    frames, times = [float(time) for time, _ in TimedFrames(path)], frame_times(path)
    assert (times.ticks * float(times.unit)).tolist() == pytest.approx(frames, abs=1e-6)
    clip, whole = read_clip(f"{path}#t={frames[3]:.4f},{frames[5]:.4f}", range), open_video(path)
    assert torch.equal(clip, whole.read([3, 4]))


def test_a_segment_of_frames_in_a_folder(tmp_path, write_frames, frame_numbers):
    folder = write_frames(tmp_path / "clip", range(9))
    assert numbers(f"{folder}#frames=3,6", frame_numbers) == [3, 4, 5]
    with pytest.raises(DmgalError, match="no times"):
        open_video(f"{folder}#t=0,1")


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        ("t=0.5,1.6", "0.5 to 1.6 s of a video of 1.000 s"),
        ("t=3,4", "3 to 4 s of a video of 1.000 s"),
        ("t=1.1,1.3", "no frame"),
        ("t=0.001,0.002", "no frame"),
        ("frames=20,45", r"20 to 45 \(frames\) of a video of 25 frames"),
        ("frames=25,26", "after the last frame"),
    ],
)
def test_a_segment_that_the_video_does_not_have_is_one_error(film, segment, message):
    with pytest.raises(VideoError, match=f"Cannot read the segment(.|\n)*{message}"):
        open_video(f"{film}#{segment}")


@pytest.mark.parametrize("segment", ["t=0.5,0.2", "t=1,1", "frames=1.5,2", "t=0,99999999"])
def test_an_impossible_segment_is_refused(film, segment):
    with pytest.raises(DmgalError, match="not a segment"):
        open_video(f"{film}#{segment}")


def test_a_segment_of_the_damaged_part_names_the_damage(test_data):
    path = test_data / "videos" / "decoder_cases" / "truncated_28_of_50_frames.mp4"
    assert len(read_clip(f"{path}#frames=20,25", range)) == 5
    assert len(read_clip(f"{path}#t=2,4", range)) == 8
    with pytest.raises(VideoError, match=r"damaged|of which 28 decode"):
        read_clip(f"{path}#frames=30,40", range)


def test_probe_counts_the_frames_of_the_segment(film):
    found = probe_video(f"{film}#t=0.2,0.4")
    assert (found.num_frames, found.width, found.height, found.problem) == (5, 128, 64, None)


def test_a_file_of_that_name_wins(film, tmp_path):
    name = tmp_path / "film.mp4#t=0,1"
    shutil.copy(film, name)
    assert file_and_span(name) == (str(name), None) and open_video(name).num_frames == 25


def test_segments_have_the_stamp_of_their_file_and_hashes_of_their_own(film):
    first, second = f"{film}#t=0,0.4", f"{film}#t=0.4,0.8"
    assert stamp(first) == stamp(film) != (0, 0)
    for of in (content_hash, quick_hash):
        assert len({of(first), of(second), of(film)} - {0}) == 3 and of(f"{film}x#t=0,1") == 0


@pytest.mark.parametrize(("text", "seconds"), [("83.5", 83.5), ("1:23.5", 83.5), ("01:00:02", 3602), ("0,5", 0.5)])
def test_times_may_have_minutes_and_hours(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "-1", "nan", "inf", "1e3", "1:2:3:4", "x", "99999999"])
def test_other_times_are_refused(text):
    with pytest.raises(ValueError, match=r"time|later"):
        parse_time(text)


def test_seconds_are_rounded_to_microseconds():
    assert Span.of_seconds(1 / 3, 2 / 3).fragment == "#t=0.333333,0.666667"
    assert Span.of_frames(0, 10).fragment == "#frames=0,10"


def test_a_store_holds_the_frames_of_segments(film, tmp_path):
    (tmp_path / "segments.csv").write_text("video,label,start,end\nfilm.mp4,first,0,0.4\nfilm.mp4,second,0.4,0.8\n")
    catalog = VideoCatalog.from_split(tmp_path / "segments.csv", film.parent)
    clips = EvaluationClips(4, transforms.TestTransform(32))
    build_store(catalog, tmp_path / "store", clips, workers=1, progress=False)
    decoded = VideoDataset(ClipSource(catalog), FrameSampler(4, transforms.TestTransform(32)))
    stored = VideoDataset(ClipSource(catalog, store=tmp_path / "store"), FrameSampler(4, transforms.TestTransform(32)))
    assert all(torch.equal(decoded[video], stored[video]) for video in range(2))
    assert not torch.equal(decoded[0], decoded[1])
