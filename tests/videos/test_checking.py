"""Checks of videos survive crashes, hangs and errors of the decoder."""

from __future__ import annotations

import importlib
import sys
import textwrap
from pathlib import Path

import pytest

from dmgal.errors import DmgalError
from dmgal.videos.catalog.files import stamp
from dmgal.videos.checking import CheckedVideo, check_videos

PROBE = """
    import os, time
    from pathlib import Path
    from dmgal.videos.decoding.video import VideoError, VideoProbe

    def probe(path: Path) -> VideoProbe:
        kind = path.name.rstrip("0123456789")
        if kind == "crash":
            os.abort()
        if kind == "exit":
            os._exit(3)
        if kind == "growing":
            path.write_bytes(path.read_bytes() + b"more")
        if kind == "hang":
            time.sleep(1000)
        if kind == "blocked":
            import signal
            if signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()):
                raise VideoError(path, "SIGINT is blocked")
        if kind == "bug":
            raise ZeroDivisionError("by zero")
        if kind == "unreadable":
            raise VideoError(path, "no moov atom")
        return VideoProbe(9 if kind == "cut" else 50, "h264", 64, 48, 90, "cut short" if kind == "cut" else None)
"""


@pytest.fixture
def probe(tmp_path, monkeypatch):
    """A probe that acts as the file name says and that other processes can import."""
    (tmp_path / "strange_probe.py").write_text(textwrap.dedent(PROBE))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("strange_probe").probe
    del sys.modules["strange_probe"]


def test_every_video_gets_a_result(probe):
    kinds = ["ok", "crash", "ok", "cut", "unreadable", "exit", "bug", "ok", "hang", "ok"]
    paths = [(number, Path(f"{kind}{number}")) for number, kind in enumerate(kinds)]
    taken = []
    results = dict(check_videos((taken.append(entry) or entry for entry in paths), 2, 2.0, probe))
    assert taken == paths and sorted(results) == list(range(len(paths)))
    reasons = {kind: results[number].problem for number, kind in enumerate(kinds)}
    assert (
        reasons["crash"] == "the decoder crashed (SIGABRT)" and reasons["exit"] == "the decoder crashed (exit code 3)"
    )
    assert reasons["hang"] == "not decoded within 2 seconds" and reasons["unreadable"] == "no moov atom"
    assert reasons["bug"] == "ZeroDivisionError: by zero" and reasons["cut"] == "cut short" and reasons["ok"] is None
    assert results[0] == CheckedVideo(50, None, "h264", 64, 48, 90)
    assert [results[number].frames for number in range(10)] == [50, 0, 50, 9, 0, 0, 0, 50, 0, 50]


def test_stamp_is_taken_before_decoding(tmp_path, probe):
    path = tmp_path / "growing"
    path.write_bytes(b"half")
    before = stamp(path)
    ((_, checked),) = check_videos([(0, path)], 1, 60.0, probe)
    assert checked.stamp == before != stamp(path)


def test_checking_processes_block_sigint(probe):
    """Ctrl-C reaches the whole process group, but checking processes must not see it, even while they start."""
    blocked = dict(check_videos([(0, Path("blocked"))], 1, 60.0, probe))[0]
    assert blocked.problem == "SIGINT is blocked"


def test_number_of_videos_in_flight_is_bounded(tmp_path, write_video):
    path = write_video(tmp_path / "a.mp4", range(20))
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield taken, path

    results = check_videos(endless(), 1, 60.0)
    number, checked = next(results)
    assert (number, checked.frames, checked.problem, checked.codec) == (1, 20, None, "h264")
    assert taken <= 8
    results.close()


def test_nothing_to_check(probe):
    assert list(check_videos([], 2, 1.0, probe)) == []


def test_processes_that_cannot_start(tmp_path, monkeypatch, probe):
    (tmp_path / "strange_probe.py").write_text("import os\nos._exit(1)\n")
    with pytest.raises(DmgalError, match=r"cannot be started(.|\n)*exit code 1 before(.|\n)*Guard the script"):
        list(check_videos([(0, Path("ok"))], 1, 60.0, probe))


@pytest.mark.parametrize(
    ("frames", "problem", "bad"),
    [(50, None, False), (3, None, False), (8, "cut", False), (7, "cut", True), (0, "x", True)],
)
def test_damaged_video_with_enough_frames_is_not_bad(frames, problem, bad):
    assert CheckedVideo(frames, problem).is_bad(8) is bad


def test_closing_the_generator_ends_its_processes(probe):
    import multiprocessing

    results = check_videos([(number, Path("hang")) for number in range(4)], 2, 1.0, probe)
    next(results)
    results.close()
    assert not [child for child in multiprocessing.active_children() if child.is_alive()]
