"""Damaged files give frames or one clean error: never a crash, a hang, a leaked handle or memory without bound."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import damaged_videos
import pytest
from PIL import Image

from dmgal.bench.barcode_clips import KINDS, barcode, write_clip

PROGRAM = Path(damaged_videos.__file__)
CORPUS = sorted((Path(__file__).parents[1] / "data" / "damaged_videos").iterdir())
QUICK_KINDS = ["H.264 closed GOPs", "H.264 open GOPs, mkv", "HEVC closed GOPs", "MPEG-4 B-frames, avi", "MPEG-1", "GIF"]


def write_whole(folder: Path, kinds: list[str]) -> Path:
    folder.mkdir()
    for place, name in enumerate(kinds):
        write_clip(folder, f"{place:02}", KINDS[name], range(12))
    with zipfile.ZipFile(folder / "frames.zip", "w") as archive:
        for number in range(5):
            file = io.BytesIO()
            Image.fromarray(barcode(number)).save(file, "JPEG")
            archive.writestr(f"{number}.jpg", file.getvalue())
    return folder


def run_seeds(folder: Path, count: int, timeout: float) -> dict[str, int]:
    """In a process of its own, so that a crash or a hang is this test's failure and names the file."""
    command = [sys.executable, str(PROGRAM), str(folder), "0", str(count)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as expired:
        pytest.fail(f"hangs at {(expired.stdout or b'')[-30:]!r}")
    assert done.returncode == 0, f"at {done.stdout[-30:]!r}: {done.stderr[-2000:]}"
    return json.loads(done.stdout.splitlines()[-1])


def test_damaged_files_give_frames_or_one_error(tmp_path):
    outcomes = run_seeds(write_whole(tmp_path / "whole", QUICK_KINDS), 150, timeout=300)
    assert outcomes.pop("MiB") < 2048
    assert set(outcomes) == {"read", "begins", "refused"} and sum(outcomes.values()) == 150


@pytest.mark.slow
def test_very_many_damaged_files_give_frames_or_one_error(tmp_path):
    outcomes = run_seeds(write_whole(tmp_path / "whole", list(KINDS)), 4000, timeout=1800)
    assert outcomes.pop("MiB") < 2048
    assert sum(outcomes.values()) == 4000


@pytest.mark.slow
def test_damaged_files_of_the_wild_give_frames_or_one_error(test_data):
    outcomes = run_seeds(test_data / "videos" / "decoder_cases", 500, timeout=1800)
    assert outcomes.pop("MiB") < 2048
    assert sum(outcomes.values()) == 500


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_what_damage_once_came_to_stays_so(path):
    """Files that the search above found, each named after what reading it must come to."""
    assert damaged_videos.check(path) == path.stem.partition("_")[0]


def test_the_corpus_is_there():
    assert {path.stem.partition("_")[0] for path in CORPUS} == {"read", "begins", "refused"}
    assert len(CORPUS) >= 16
