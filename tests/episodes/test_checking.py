"""Checking survives what a decoder does not: a crash, a hang, an error of its own."""

from __future__ import annotations

import importlib
import sys
import textwrap
from pathlib import Path

import pytest

from dmgal.episodes.catalogs.checking import CheckedVideo, check_videos
from dmgal.episodes.catalogs.video_identity import stamp
from dmgal.errors import DmgalError

PROBE = """
    import os, time
    from pathlib import Path
    from dmgal.episodes.video import VideoError, VideoProbe

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
    """A probe that does what a path's name says, importable by other processes."""
    (tmp_path / "strange_probe.py").write_text(textwrap.dedent(PROBE))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("strange_probe").probe
    del sys.modules["strange_probe"]


def test_every_video_gets_an_answer(probe):
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


def test_a_file_that_changes_while_it_is_checked_is_known_as_it_was_before(tmp_path, probe):
    path = tmp_path / "growing"
    path.write_bytes(b"half")
    before = stamp(path)
    ((_, checked),) = check_videos([(0, path)], 1, 60.0, probe)
    assert checked.stamp == before != stamp(path)


def test_an_interruption_is_for_the_first_process_alone(probe):
    """Ctrl-C goes to the whole group of processes; those that check must not see it, even while they start."""
    blocked = dict(check_videos([(0, Path("blocked"))], 1, 60.0, probe))[0]
    assert blocked.problem == "SIGINT is blocked"


def test_real_videos_and_what_is_taken_at_a_time(tmp_path, write_video):
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
    assert taken <= 8  # bounded, however many there are
    results.close()


def test_nothing_to_check(probe):
    assert list(check_videos([], 2, 1.0, probe)) == []


def test_processes_that_cannot_start(tmp_path, monkeypatch, probe):
    (tmp_path / "strange_probe.py").write_text("import os\nos._exit(1)\n")
    with pytest.raises(DmgalError, match=r"cannot be started(.|\n)*exit code 1 before(.|\n)*guard the script"):
        list(check_videos([(0, Path("ok"))], 1, 60.0, probe))


@pytest.mark.parametrize(
    ("frames", "problem", "bad"),
    [(50, None, False), (3, None, False), (8, "cut", False), (7, "cut", True), (0, "x", True)],
)
def test_a_damaged_video_is_used_where_its_frames_are_enough(frames, problem, bad):
    assert CheckedVideo(frames, problem).is_bad(8) is bad


def test_no_process_is_left_behind(probe):
    import multiprocessing

    results = check_videos([(number, Path("hang")) for number in range(4)], 2, 1.0, probe)
    next(results)
    results.close()
    assert not [child for child in multiprocessing.active_children() if child.is_alive()]
