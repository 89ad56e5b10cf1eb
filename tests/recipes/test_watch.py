"""Live recognition: the events of a file and of a camera, no lag with a slow model, and constant memory."""

from __future__ import annotations

import gc
import itertools
import json
import resource
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from live_server import Camera, encoded, served, served_by_rtsp
from PIL import Image

from dmgal.backbones.streams import remember_recent_frames
from dmgal.cli import main
from dmgal.episodes.gallery.events import Event, EventRule
from dmgal.episodes.gallery.windows import WindowPlan
from dmgal.recipes.run.action_recognizer import ActionRecognizer
from dmgal.recipes.run.watching import LiveWindows, WatchCounts, Watcher
from dmgal.videos.decoding import live
from dmgal.videos.decoding.live import LiveFrame
from dmgal.videos.generated import write_video

SIZE, RATE = 48, 25


def film(seconds: float, speeds: tuple[int, ...] = (0, 2)) -> torch.Tensor:
    """A square that stands still in the first part and moves in the next one."""
    frames = torch.zeros(round(seconds * RATE), 3, SIZE, SIZE, dtype=torch.uint8)
    left = 0
    for number, frame in enumerate(frames):
        left += speeds[number * len(speeds) // len(frames)]
        frame[:, 16:32, (left % (SIZE - 16)) : (left % (SIZE - 16)) + 16] = 255
    return frames


@pytest.fixture(scope="module")
def gallery(tmp_path_factory) -> Path:
    """A gallery of ``still`` and ``moving``, by tiny-clip beside its motion adapter."""
    root = tmp_path_factory.mktemp("watch")
    recognizer = ActionRecognizer(unknown=False, views=1)
    recognizer.enroll({"still": [film(2, (0,))], "moving": [film(2, (2,))]})
    recognizer.save(root / "gallery.safetensors")
    write_video(root / "film.mp4", film(2.4))  # 10 frames per second
    return root / "gallery.safetensors"


@pytest.fixture
def watch(gallery, capsys) -> Callable[..., Any]:
    """Run the command, and return its lines and its errors."""

    def run(*words, code=0):
        capsys.readouterr()
        assert main(["watch", str(gallery), *map(str, words), "--no-unknown", "--quiet"]) == code
        printed = capsys.readouterr()
        return [json.loads(line) for line in printed.out.splitlines()], printed.err

    return run


def test_events_of_a_file_are_lines_of_json(watch, gallery):
    lines, _ = watch(gallery.parent / "film.mp4")
    assert [(line["type"], line.get("action")) for line in lines] == [
        ("begin", "still"),
        ("end", "still"),
        ("begin", "moving"),
        ("end", "moving"),
        ("summary", None),
    ]
    assert lines[1]["end"] == pytest.approx(3, abs=0.75) and lines[1]["end"] <= lines[2]["start"]
    assert lines[-1]["windows"] == 10 and lines[-1]["dropped_frames"] == 0


@pytest.mark.slow
def test_a_part_of_a_file_in_a_file(watch, gallery, tmp_path):
    out = tmp_path / "events.jsonl"
    assert watch(gallery.parent / "film.mp4", "--out", out, "--seconds", "2.2")[0] == []
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines[-1]["type"] == "summary" and lines[-1]["seconds"] <= 2.5 and lines[0]["action"] == "still"


def test_a_camera_that_ends_gives_its_events_and_one_error(watch, gallery, monkeypatch):
    monkeypatch.setattr(live, "FIRST_WAIT", 0.01)
    frames = [frame.permute(1, 2, 0).numpy() for frame in film(3, (0,))]
    with served(Camera(encoded(frames))) as camera:
        lines, err = watch(camera.url, "--retries", "1", "--wait", "2", code=2)
    assert [line["type"] for line in lines] == ["begin", "end", "summary"] and lines[0]["action"] == "still"
    assert lines[-1]["frames"] > 60 and err.count("was interrupted") == 1 and err.count("The source was lost") == 1


@pytest.mark.slow
def test_events_of_a_camera_with_rtsp(watch):
    frames = [frame.permute(1, 2, 0).numpy() for frame in film(4, (0,))]
    with served_by_rtsp(encoded(frames, "h264")) as url:
        lines, err = watch(url, "--seconds", "3")
    assert [line["type"] for line in lines] == ["begin", "end", "summary"] and lines[0]["action"] == "still"
    assert lines[-1]["frames"] > 60 and err == ""


@pytest.fixture
def screen(monkeypatch) -> list[Any]:
    """A substitute for OpenCV's windows. Return the pictures that it shows; ``monkeypatch`` may change its keys."""
    shown: list[Any] = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", lambda *words: None)
    monkeypatch.setattr(cv2, "imshow", lambda title, picture: shown.append(picture))
    monkeypatch.setattr(cv2, "waitKey", lambda delay: -1)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda title, kind: 1.0)
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: shown.append(None))
    return shown


def test_folder_of_frames_has_the_times_of_fps_and_is_displayed(watch, screen, tmp_path):
    for number, frame in enumerate(film(2.4)[30:]):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(tmp_path / f"{number:03}.png")
    assert "--fps 25" in watch(tmp_path, code=2)[1]
    lines, _ = watch(tmp_path, "--fps", "10", "--display")
    assert lines[-1]["frames"] == 30 and lines[-1]["windows"] == 4 and lines[-1]["seconds"] >= 3
    *pictures, closed = screen
    assert len(pictures) == 4 and closed is None
    assert all(picture.shape == (480, 480, 3) and picture.dtype == "uint8" for picture in pictures)
    assert (pictures[0] != pictures[-1]).any() and pictures[0][:50].any()  # the square moves, the text is above it


@pytest.mark.parametrize("way", ["key", "button"])
def test_closed_display_ends_the_command(watch, screen, gallery, monkeypatch, way):
    if way == "key":
        monkeypatch.setattr(cv2, "waitKey", lambda delay: ord("q"))
    else:
        monkeypatch.setattr(cv2, "getWindowProperty", lambda title, kind: 0.0)
    lines, _ = watch(gallery.parent / "film.mp4", "--display")
    assert lines[-1]["type"] == "summary" and lines[-1]["windows"] == 1 and len(screen) == 2


@pytest.mark.parametrize("display", [":0", ""])
def test_display_without_windows_is_one_error(watch, gallery, monkeypatch, display):
    def without_windows(*words):
        raise cv2.error("The function is not implemented.")

    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(cv2, "namedWindow", without_windows)
    _, err = watch(gallery.parent / "film.mp4", "--display", code=2)
    assert "No window can be opened" in err and "pip" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to watch"),
        (["rtsp://127.0.0.1:9/x", "--fps", "25"], "times of its own"),
        (["no.mp4"], "no such file"),
        (["film.mp4", "--stride", "3"], "stride"),
        (["film.mp4", "--stride", "1e-9"], "stride"),
        (["film.mp4", "--begin", "0.2"], "begin"),
        (["film.mp4", "--out", "no/x.jsonl"], "existing folder"),
        (["http://127.0.0.1:9/x"], "cannot be watched"),
    ],
)
def test_impossible_calls_are_one_error(watch, gallery, words, message):
    words = [str(gallery.parent / word) if word == "film.mp4" else word for word in words]
    _, err = watch(*words, code=2)
    assert message in err and "what to do:" in err


def moving(count: int, pace: float | None = None) -> Iterator[LiveFrame]:
    """Yield generated frames, as fast as possible or ``pace`` frames per second."""
    start, picture = time.monotonic(), torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
    for number in range(count):
        if pace is not None:
            time.sleep(max(0.0, start + number / pace - time.monotonic()))
        yield LiveFrame(Fraction(number, RATE), lambda number=number: picture + number % 256, number == 0)


def test_windows_are_replaced_while_the_model_is_busy():
    counts, got = WatchCounts(), []
    frames = moving(300, pace=1000)
    with LiveWindows(frames, WindowPlan(1, 0.2), 4, lambda clip: clip, counts) as windows:
        for window in windows:
            got.append(window)
            time.sleep(0.05)
            assert time.monotonic() - window.ready < 0.5  # no queue
    assert counts.frames == 300 and counts.skipped_windows == 56 - len(got) > 10
    for window in got:  # the frames in the middle of four parts of the second
        first = round(window.window.start * RATE)
        assert (window.first, window.end) == (first, first + 22)  # the last of them is shown until frame 22
        assert window.window.clip[:, 0, 0, 0].tolist() == [(first + k) % 256 for k in (3, 9, 15, 21)]
    assert sum(window.is_first for window in got) == 1


def test_no_window_contains_a_break(gallery):
    first, second = list(moving(55)), list(moving(55))
    later = [LiveFrame(frame.time + 10, frame.read, frame.is_first) for frame in second]
    counts, events = WatchCounts(), list[Event]()
    ready = ActionRecognizer.load(gallery, unknown=False).clip_recognizer()
    watcher = Watcher(ready, WindowPlan(2, 0.5), EventRule(0, 0), counts)
    watcher.live(itertools.chain(first, later), events.append)
    assert counts.breaks == 1 and all(event.end <= 2.2 or event.start >= 10 for event in events if event.is_over)


class SlowRecognizer:
    """A recognizer of clips whose answers take a while."""

    def __init__(self, ready: Any, seconds: float) -> None:
        self._ready, self._seconds = ready, seconds

    def __getattr__(self, name: str) -> Any:
        if name == "task":
            time.sleep(self._seconds)
        return getattr(self._ready, name)


@pytest.mark.slow
def test_a_slow_model_drops_frames_and_does_not_lag(gallery):
    ready: Any = SlowRecognizer(ActionRecognizer.load(gallery, unknown=False).clip_recognizer(), 0.6)
    watcher = Watcher(ready, WindowPlan(0.4, 0.2), EventRule())
    watcher.live(moving(60, pace=RATE), lambda event: None)
    assert watcher.counts.dropped_frames > 0 and watcher.counts.skipped_windows > 0
    assert watcher.counts.windows < 8


@pytest.mark.parametrize("adapter", [None, "tiny-clip-motion"])
def test_reused_frames_give_the_same_answers(adapter):
    encoder = ActionRecognizer(adapter=adapter).model.recognizer.encoder.eval()
    frames = torch.randint(0, 256, (9, 3, SIZE, SIZE), dtype=torch.uint8)
    clips = torch.stack([frames[:8], frames[1:]])
    with torch.no_grad():
        expected = encoder.encode(clips)["features"]
        [memory] = remember_recent_frames(encoder, 2**18)
        for clip, features in zip(clips, expected, strict=True):
            torch.testing.assert_close(encoder.encode(clip[None])["features"][0], features, rtol=1e-4, atol=1e-5)
        assert len(memory) == 9
        memory.num_bytes = memory.used_bytes / 3
        encoder.encode(torch.zeros_like(clips))
    assert len(memory) == 3  # the oldest frames make room for a new one


@pytest.mark.slow
def test_memory_is_constant_over_10000_frames(gallery):
    recognizer = ActionRecognizer.load(gallery, unknown=False)
    remember_recent_frames(recognizer.model.recognizer.encoder, 2**20)
    watcher = Watcher(recognizer.clip_recognizer(), WindowPlan(2, 0.5), EventRule())
    peaks = []

    def frames() -> Iterator[LiveFrame]:
        for frame in moving(10_000, pace=1000):
            if frame.time in (40, 399):
                gc.collect()
                peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
            yield frame

    watcher.live(frames(), lambda event: None)
    assert watcher.counts.frames == 10_000 and watcher.counts.windows > 10
    assert peaks[1] - peaks[0] < 8 * 1024  # KB
