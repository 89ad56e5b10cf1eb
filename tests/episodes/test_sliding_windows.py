"""Windows of small real videos: correct frames, each decoded once, few of them in memory."""

from __future__ import annotations

import weakref

import pytest
import torch

from dmgal.episodes.gallery.windows import WindowPlan, sliding_windows
from dmgal.errors import DmgalError
from dmgal.videos.decoding.base import VideoError
from dmgal.videos.decoding.clip import uniform_frames
from dmgal.videos.decoding.stream import TimedFrames
from dmgal.videos.decoding.video import open_video, read_clip


def unchanged(frames):
    return frames


def windows_of(path, seconds, stride, num_frames=4, fps=None):
    frames = TimedFrames(path, fps)
    return frames, list(sliding_windows(frames, WindowPlan(seconds, stride), num_frames, unchanged))


@pytest.fixture(scope="module")
def video(tmp_path_factory, write_video):
    """Two seconds at 25 frames per second, displayed in another order than stored."""
    return write_video(tmp_path_factory.mktemp("videos") / "v.mp4", range(50), options={"bf": "2", "g": "12"})


def test_window_over_the_whole_video_is_its_clip(video):
    frames, [window] = windows_of(video, 2, 2, num_frames=8)
    assert (window.start, window.end, frames.seconds, frames.damage) == (0, 2, pytest.approx(2), None)
    assert torch.equal(window.clip, read_clip(video, lambda count: uniform_frames(count, 8)))


def test_each_window_is_the_clip_of_its_seconds(video, frame_numbers):
    frames, windows = windows_of(video, 0.8, 0.4)
    assert [(round(w.start, 3), round(w.end, 3)) for w in windows] == [(0, 0.8), (0.4, 1.2), (0.8, 1.6), (1.2, 2.0)] + [
        (1.6, 2.0)
    ]
    for window in windows[:4]:
        first = round(window.start * 25)
        assert frame_numbers(window.clip) == [first + place for place in uniform_frames(20, 4)]
    assert frame_numbers(windows[4].clip) == [42, 42, 47, 47]  # the remaining half of the samples is spread
    assert frames.decoded == 50


def test_short_rest_is_dropped(video):
    assert [round(w.end, 3) for w in windows_of(video, 0.9, 0.9)[1]] == [0.9, 1.8]
    [window] = windows_of(video, 30, 10)[1]
    assert (window.start, window.end, window.clip.shape[0]) == (0, pytest.approx(2), 4)
    [window] = windows_of(video, 1000, 1000)[1]  # shorter than half a span: the last frame is repeated
    assert window.clip.shape[0] == 4


def test_memory_does_not_grow_with_the_video(tmp_path, write_video):
    alive, most, made = weakref.WeakSet(), [0], [0]

    def counted(frames):
        frames = frames.clone()
        alive.add(frames)
        made[0] += 1
        most[0] = max(most[0], len(alive))
        return frames

    held = []
    for count in (60, 240):
        path = write_video(tmp_path / f"{count}.mp4", [number % 250 for number in range(count)])
        most[0] = made[0] = 0
        frames = TimedFrames(path)
        number = sum(1 for _ in sliding_windows(frames, WindowPlan(0.8, 0.2), 4, counted))
        assert frames.decoded == count and number >= count / 25 / 0.2 - 4
        held.append((most[0], made[0] / count))
    assert held[0][0] == held[1][0] <= 16  # 4 overlapping windows of 4 frames
    assert held[1][1] <= 1  # no frame is converted twice


def test_frames_without_times_need_a_rate(tmp_path, write_frames, frame_numbers):
    folder = write_frames(tmp_path / "frames", range(20))
    with pytest.raises(DmgalError, match="--fps"):
        TimedFrames(folder)
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(DmgalError, match="--fps"):
            TimedFrames(folder, wrong)
    frames, windows = windows_of(folder, 1, 1, fps=10)
    assert frames.seconds == 2 and [frame_numbers(w.clip) for w in windows] == [
        [1, 3, 6, 8],
        [11, 13, 16, 18],
    ]


def test_file_without_times_uses_its_rate(tmp_path, write_video, frame_numbers):
    path = write_video(tmp_path / "v.avi", range(50), codec="mpeg4", options={"bf": "2"})
    _, windows = windows_of(path, 1, 1)
    assert [frame_numbers(window.clip) for window in windows] == [
        uniform_frames(25, 4),
        [25 + place for place in uniform_frames(25, 4)],
    ]


def test_damaged_video_is_used_up_to_the_damage(tmp_path, write_video):
    path = write_video(tmp_path / "v.mp4", range(100), codec="mpeg4", options={"g": "10"})
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    path.write_bytes(content)
    frames, windows = windows_of(path, 0.4, 0.4)
    video = open_video(path).read
    assert 10 < frames.decoded < 100 and "damaged" in frames.damage
    assert len(windows) == -(-(frames.decoded - 5) // 10)
    whole = windows[0].clip
    assert torch.equal(whole, video(uniform_frames(10, 4)))


def test_invalid_video_raises(tmp_path):
    (tmp_path / "text.mp4").write_text("hello")
    for name in ("text.mp4", "missing.mp4"):
        with pytest.raises(VideoError, match="what to do"):
            windows_of(tmp_path / name, 1, 1)


@pytest.mark.parametrize(
    ("seconds", "stride"), [(0, 0), (1, 2), (1, 0), (float("nan"), 1), (float("inf"), 1), (-1, -1)]
)
def test_windows_with_gaps_raise(seconds, stride):
    with pytest.raises(DmgalError, match="s <= stride <= window"):
        WindowPlan(seconds, stride)
