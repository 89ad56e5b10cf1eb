"""The log of a check resumes after any interruption, and its report reads back."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmgal.errors import DmgalError
from dmgal.videos import check_log
from dmgal.videos.check_log import CheckLog, read_report, write_report
from dmgal.videos.checking import CheckedVideo

VIDEOS = ["a/1.mp4", "a/2 ü.mp4", "b/\udce9.mp4", "b/4.mp4"]
GOOD, BAD, CUT = CheckedVideo(50, None, "h264", 64, 48, 0), CheckedVideo(0, "no\nframes"), CheckedVideo(9, "cut, short")


def write(log: CheckLog, *entries: tuple[int, CheckedVideo]) -> None:
    with log.writer() as file:
        for index, checked in entries:
            log.write(file, index, checked)


def test_checked_videos_and_problems_read_back(tmp_path):
    log = CheckLog(tmp_path / "new" / "log.jsonl", tmp_path, VIDEOS)
    assert not log.done().any() and log.problems == {}
    write(log, (2, BAD), (0, GOOD), (1, CUT))
    again = CheckLog(log.path, tmp_path, VIDEOS)
    assert again.done().tolist() == [True, True, True, False]
    assert again.problems == log.problems == {VIDEOS[2]: BAD, VIDEOS[1]: CUT}


def test_changed_bad_file_is_checked_again(tmp_path):
    path = tmp_path / VIDEOS[3]
    path.parent.mkdir()
    path.write_bytes(b"half")
    log = CheckLog(tmp_path / "log.jsonl", tmp_path, VIDEOS)
    write(log, (3, BAD))
    assert CheckLog(log.path, tmp_path, VIDEOS).done().tolist() == [False] * 3 + [True]
    path.write_bytes(b"whole file")
    again = CheckLog(log.path, tmp_path, VIDEOS)
    assert not again.done().any()
    write(again, (3, GOOD))
    last = CheckLog(log.path, tmp_path, VIDEOS)
    assert last.done()[3] and last.problems == again.problems == {}


def test_changed_files_are_checked_again(tmp_path):
    for name in ("grown", "touched", "same"):
        (tmp_path / name).write_bytes(b"sound")
    log = CheckLog(tmp_path / "log.jsonl", tmp_path, ["grown", "touched", "same"])
    write(log, (0, GOOD), (1, GOOD), (2, GOOD))
    assert CheckLog(log.path, tmp_path, ["grown", "touched", "same"]).done().all()
    (tmp_path / "grown").write_bytes(b"something else")
    os.utime(tmp_path / "touched", (1, 1))
    assert CheckLog(log.path, tmp_path, ["grown", "touched", "same"]).done().tolist() == [False, False, True]
    write(log, (0, GOOD))  # the last line of a video is valid
    assert CheckLog(log.path, tmp_path, ["grown", "touched", "same"]).done().tolist() == [True, False, True]


def test_log_of_another_folder_is_ignored(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    log = CheckLog(tmp_path / "log.jsonl", one, VIDEOS)
    write(log, (0, GOOD), (2, BAD))
    assert log.is_of_root and json.loads(log.path.read_text().splitlines()[0]) == {"root": str(one)}
    moved = CheckLog(log.path, other, VIDEOS)
    assert not moved.is_of_root and not moved.done().any() and moved.problems == {}
    write(moved, (1, CUT))
    assert CheckLog(log.path, other, VIDEOS).done().tolist() == [False, True, False, False]
    assert not CheckLog(log.path, one, VIDEOS).done().any(), "the log was overwritten"
    (tmp_path / "link").symlink_to(other)
    assert CheckLog(log.path, tmp_path / "link", VIDEOS).done()[1], "the same folder by another name"


@pytest.mark.parametrize(
    "first", ["", "null\n", '{"video": "a/1.mp4", "frames": 9, "problem": null}\n', '{"root": 1}\n']
)
def test_log_without_root_is_ignored(tmp_path, first):
    (tmp_path / "log.jsonl").write_text(first)
    log = CheckLog(tmp_path / "log.jsonl", tmp_path, VIDEOS)
    assert not log.done().any()
    write(log, (3, GOOD))
    assert CheckLog(log.path, tmp_path, VIDEOS).done().tolist() == [False, False, False, True]


def test_log_stays_valid_if_the_catalog_changes(tmp_path):
    log = CheckLog(tmp_path / "log.jsonl", tmp_path, VIDEOS)
    write(log, (0, GOOD), (2, BAD), (3, GOOD))
    other = CheckLog(log.path, tmp_path, ["new.mp4", VIDEOS[3], VIDEOS[2]])
    assert other.done().tolist() == [False, True, True] and list(other.problems) == [VIDEOS[2]]
    assert CheckLog(log.path, tmp_path, []).done().tolist() == []


@given(st.integers(0, 400), st.sampled_from([b"", b"{}\n", b"null\n", b"\xff\xfe\n", b'{"video": 3, "frames"']))
def test_kill_at_any_byte_loses_at_most_one_line(tmp_path_factory, cut, garbage):
    folder = tmp_path_factory.mktemp("cut")
    log = CheckLog(folder / "log.jsonl", folder, VIDEOS)
    write(log, (0, GOOD), (1, CUT), (3, GOOD))
    content = log.path.read_bytes()
    prefix = content[: min(cut, len(content))]
    log.path.write_bytes(prefix + garbage)
    again = CheckLog(log.path, folder, VIDEOS)
    done = again.done()
    assert done.sum() >= prefix.count(b"\n") - 1  # the first line names the folder
    write(again, (2, GOOD))
    assert CheckLog(log.path, folder, VIDEOS).done()[2]
    lines = log.path.read_bytes().splitlines()
    assert json.loads(lines[-1])["video"] == VIDEOS[2]


def test_kill_during_the_first_line(tmp_path):
    log = CheckLog(tmp_path / "log.jsonl", tmp_path, VIDEOS)
    write(log, (0, GOOD))
    first = log.path.read_bytes().partition(b"\n")[0]
    log.path.write_bytes(first)
    write(CheckLog(log.path, tmp_path, VIDEOS), (2, GOOD))
    assert log.path.read_bytes().startswith(first + b"\n")
    assert CheckLog(log.path, tmp_path, VIDEOS).done()[2]


def test_long_logs_are_read_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(check_log, "LINES_AT_ONCE", 3)
    videos = [f"{number}.mp4" for number in range(20)]
    log = CheckLog(tmp_path / "log.jsonl", tmp_path, videos)
    write(log, *((index, GOOD if index % 5 else BAD) for index in range(0, 20, 2)))
    again = CheckLog(log.path, tmp_path, videos)
    assert np.flatnonzero(again.done()).tolist() == list(range(0, 20, 2))
    assert list(again.problems) == ["0.mp4", "10.mp4"]


def test_closed_pipe_is_not_a_disk_error(tmp_path):
    log = CheckLog(tmp_path / "log.jsonl", tmp_path, VIDEOS)
    with pytest.raises(BrokenPipeError), log.writer():
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))  # as from printing inside the context


def test_full_disk_is_an_error(tmp_path):
    log = CheckLog(tmp_path / "log.jsonl", tmp_path, VIDEOS)
    raises_error = pytest.raises(
        DmgalError, match=r"log of the check(.|\n)*No space left(.|\n)*resumes where it stopped"
    )
    with raises_error, log.writer() as file:
        log.write(file, 0, GOOD)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert CheckLog(log.path, tmp_path, VIDEOS).done().tolist() == [True, False, False, False]
    with pytest.raises(DmgalError, match="log of the check"):
        write(CheckLog(log.path / "below_a_file.jsonl", tmp_path, VIDEOS), (0, GOOD))


def test_the_report_reads_back(tmp_path):
    problems = {VIDEOS[2]: BAD, 'quoted ", comma': CUT}
    write_report(tmp_path / "report.csv", problems)
    assert read_report(tmp_path / "report.csv") == problems
    write_report(tmp_path / "none.csv", {})
    assert read_report(tmp_path / "none.csv") == {}


@pytest.mark.parametrize(
    "text", ["", "split,class_name,video\n", "video,frames,problem\na,b,c\n", "video,frames,problem\na,1\n"]
)
def test_invalid_report_is_an_error(tmp_path, text):
    (tmp_path / "report.csv").write_text(text)
    with pytest.raises(DmgalError, match=r"cannot read the report(.|\n)*dmgal prepare"):
        read_report(tmp_path / "report.csv")
    with pytest.raises(DmgalError, match="cannot read the report"):
        read_report(tmp_path / "absent.csv")
