"""Live sources: frames and times of a stream, and what happens when it stalls, ends, comes back or is not there."""

from __future__ import annotations

import logging
import re
from itertools import pairwise

import pytest
from live_server import Camera, encoded, served, served_by_rtsp
from video_fixtures import barcode

from dmgal.errors import DmgalError
from dmgal.videos.decoding import live
from dmgal.videos.decoding.live import LiveFrames, live_input


@pytest.fixture(scope="module")
def parts() -> list[bytes]:
    return encoded([barcode(number) for number in range(50)])


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(live, "FIRST_WAIT", 0.01)


def frames_of(camera: Camera, **options) -> LiveFrames:
    source = live_input(camera.url)
    assert source is not None
    return LiveFrames(source, **{"patience": 5.0, "retries": 2, **options})


def test_frames_and_times_of_a_stream(parts, frame_numbers):
    with served(Camera(parts)) as camera:
        frames = frames_of(camera, seconds=1.8)
        got = [(float(frame.time), frame_numbers(frame.read()[None])[0], frame.is_first) for frame in frames]
    assert [number for _, number, _ in got] == list(range(len(got))) and 45 <= len(got) <= 47
    assert [time for time, _, _ in got] == pytest.approx([number / 25 for number in range(len(got))], abs=1e-3)
    assert [is_first for *_, is_first in got] == [True] + [False] * (len(got) - 1)


@pytest.mark.parametrize("stalls", [False, True])
def test_a_source_that_ends_or_stalls_is_opened_again_and_then_lost(parts, frame_numbers, caplog, stalls):
    with served(Camera(parts, frames=(20, 15), stalls=stalls)) as camera, caplog.at_level(logging.WARNING):
        frames, got = frames_of(camera, patience=0.5), []
        with pytest.raises(DmgalError, match=r"The source was lost(.|\n)*and 2 more attempts") as caught:
            for frame in frames:
                got.append((float(frame.time), frame_numbers(frame.read()[None])[0], frame.is_first))
    firsts = [place for place, (_, _, is_first) in enumerate(got) if is_first]
    numbers = [number for _, number, _ in got]
    assert len(firsts) == 2 and numbers == [*range(firsts[1]), *range(len(got) - firsts[1])]
    assert firsts[1] >= 15 and all(a[0] < b[0] for a, b in pairwise(got))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2 and all("was interrupted" in message for message in messages)
    assert stalls == ("nothing was received for 0.5 s" in messages[0])
    assert "secret" not in str(caught.value) + "".join(messages)


def test_frames_and_times_of_a_camera_with_rtsp(frame_numbers):
    parts = encoded([barcode(number) for number in range(40)], "h264")
    with served_by_rtsp(parts, pace=100) as url:
        source = live_input(url)
        assert source is not None and "secret" not in source.name
        frames = LiveFrames(source, patience=5.0, retries=0, seconds=1.0)
        got = [(float(frame.time), frame_numbers(frame.read()[None])[0], frame.is_first) for frame in frames]
    first = got[0][1]
    assert [number - first for _, number, _ in got] == list(range(len(got))) and len(got) >= 25
    assert [time for time, _, _ in got] == pytest.approx([number / 25 for number in range(len(got))], abs=1e-3)
    assert [is_first for *_, is_first in got] == [True] + [False] * (len(got) - 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stalls", "reason"), [(False, "it ended|Immediate exit"), (True, "nothing was received for 0.5 s")]
)
def test_a_camera_with_rtsp_that_ends_or_stalls_is_lost(caplog, stalls, reason):
    parts = encoded([barcode(number) for number in range(30)], "h264")
    with served_by_rtsp(parts, pace=100, stalls=stalls) as url, caplog.at_level(logging.WARNING):
        source = live_input(url)
        assert source is not None
        with pytest.raises(DmgalError, match="The source was lost") as caught:
            for frame in LiveFrames(source, patience=0.5, retries=0):
                assert frame.read().shape[0] == 3
    assert re.search(reason, str(caught.value)) and "secret" not in str(caught.value) + caplog.text


def test_pictures_without_times_have_that_of_their_arrival(parts):
    jpegs = encoded([barcode(number) for number in range(8)], "mpjpeg")
    camera = Camera(jpegs, pace=20, content_type="multipart/x-mixed-replace;boundary=ffmpeg")
    with served(camera):
        times = [float(frame.time) for frame in frames_of(camera, seconds=0.2)]
    assert times[0] == 0 and len(times) >= 3


def test_close_ends_the_iteration(parts):
    with served(Camera(parts, pace=25)) as camera:
        frames = frames_of(camera)
        for frame in frames:
            if frame.time > 0.2:
                frames.close()
    assert frames.decoded < 40


@pytest.mark.parametrize("content", [b"", b"<html>no camera</html>" * 100])
def test_a_source_without_video_is_one_error(content):
    with served(Camera([content])) as camera, pytest.raises(DmgalError, match="cannot be watched"):
        list(frames_of(camera))


def test_a_source_that_is_not_there_is_one_error():
    source = live_input("http://user:password@127.0.0.1:9/x")
    with pytest.raises(DmgalError, match="cannot be watched") as caught:
        list(LiveFrames(source))
    assert "password" not in str(caught.value)
    with pytest.raises(DmgalError, match="cannot be watched"):
        list(LiveFrames(live_input("/dev/video99")))


def test_a_playlist_cannot_name_local_files(parts, tmp_path):
    (tmp_path / "x.ts").write_bytes(b"".join(parts))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile://{tmp_path}/x.ts\n#EXT-X-ENDLIST\n"
    camera = Camera([playlist.encode()], content_type="application/x-mpegurl")
    with served(camera), pytest.raises(DmgalError, match="cannot be watched"):
        list(frames_of(camera))


@pytest.mark.parametrize(
    ("source", "url"), [("rtsp://a/b", "rtsp://a/b"), ("/dev/video3", "/dev/video3"), ("clip.mp4", None), ("a:b", None)]
)
def test_kinds_of_sources(source, url):
    found = live_input(source)
    assert (found and found.url) == url


def test_webcams_by_number(monkeypatch):
    for system, url in (("linux", "/dev/video2"), ("darwin", "2:none")):
        monkeypatch.setattr("sys.platform", system)
        assert live_input("2").url == url
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(DmgalError, match="by number"):
        live_input("2")
