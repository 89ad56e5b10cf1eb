"""Skipped videos are reported once for a split, in whichever process they were read."""

from __future__ import annotations

from pathlib import Path

import forked

PROGRAM = """
import sys
from dmgal.videos.bad_videos import BadVideos
from dmgal.videos.catalog.catalog import VideoCatalog
from dmgal.videos.decoding.video import VideoError
from dmgal.recipes.training.tasks import report_skipped
from accelerate import PartialState

bad = BadVideos(VideoCatalog.from_folders(sys.argv[1]), "skip")

def read(video):
    raise VideoError(bad.catalog.path(video), "gone")

for video in ((1, 3), (3, 4))[PartialState(cpu=True).process_index]:
    bad.clip_or_none(video, read)
report_skipped(bad, "train")
"""


def test_skipped_videos_of_all_processes_are_one_line(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / "videos" / f"class{number // 3}" / f"{number}.mp4").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / f"class{number // 3}" / f"{number}.mp4").touch()
    (tmp_path / "program.py").write_text(PROGRAM)
    done = forked.run([str(tmp_path / "program.py"), str(tmp_path / "videos")], processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("skipped")]
    told = "skipped 3 of 6 train videos, which could not be read: class0/1.mp4, class1/3.mp4, class1/4.mp4"
    assert lines == [told]
