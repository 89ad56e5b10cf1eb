"""Tests of stores with unreadable videos, wrong bytes and interrupted builds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_hexdigest

from dmgal.errors import DmgalError
from dmgal.videos import VideoCatalog
from dmgal.videos.dataset import ClipSource, VideoDataset
from dmgal.videos.decoding import clip as transforms
from dmgal.videos.decoding.base import VideoError
from dmgal.videos.decoding.clip import FrameSampler
from dmgal.videos.decoding.video import read_clip
from dmgal.videos.store.build import build_store
from dmgal.videos.store.content import EvaluationClips
from dmgal.videos.store.store import DATA, INDEX, KEY, Record, StoredClips, StoredFrames, read_key, read_records

CLIPS = EvaluationClips(4, transforms.TestTransform(40, resize=1.2))


def rebuild(catalog: VideoCatalog, folder: Path):
    return build_store(catalog, folder, CLIPS, workers=1, progress=False)


class TestBadVideos:
    """Unreadable videos, which fail with the same message from the store and are counted."""

    @pytest.fixture
    def catalog(self, tmp_path, write_video) -> VideoCatalog:
        for split in ("train", "test"):
            folder = tmp_path / "videos" / split / f"class of {split}"
            whole = write_video(folder / "whole.mp4", range(50), options={"bf": "0", "g": "10"})
            (folder / "empty.mp4").write_bytes(b"")
            index_first = {"movflags": "faststart"}
            cut = write_video(folder / "cut.mp4", range(50), options={"bf": "0", "g": "10"}, muxer_options=index_first)
            cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
            (folder / "text.mp4").write_text("no video")
            assert whole.exists()
        return VideoCatalog.from_folders(tmp_path / "videos")

    def test_reasons_are_stored(self, catalog, tmp_path):
        reports = rebuild(catalog, tmp_path / "store")
        assert [sorted(Path(v).name for v in report.unreadable) for report in reports] == [
            ["empty.mp4", "text.mp4"]
        ] * 2
        assert "2 cannot be read: " in str(reports[0])
        train, test = catalog.split("train"), catalog.split("test")
        clips, frames = StoredClips(tmp_path / "store", test, CLIPS), StoredFrames(tmp_path / "store", train)
        plain = VideoDataset(ClipSource(test), FrameSampler(4, CLIPS.transform))
        bad = 0
        for video in range(len(test)):
            try:
                wanted = plain[video]
            except VideoError as error:
                bad += 1
                with pytest.raises(VideoError) as again:
                    clips.read(video)
                assert str(again.value) == str(error)
                with pytest.raises(VideoError):
                    frames.read(video, range)
            else:
                assert torch.equal(clips.read(video), wanted)
        assert bad == 2
        assert [report.made for report in rebuild(catalog, tmp_path / "store")] == [0, 0]

    def test_truncated_video_is_used_if_enough_frames_decode(self, catalog, tmp_path):
        rebuild(catalog, tmp_path / "store")
        train = catalog.split("train")
        cut = next(v for v in range(len(train)) if train.videos[v].endswith("cut.mp4"))
        frames, count = StoredFrames(tmp_path / "store", train), len(read_clip(train.path(cut), range))
        assert 4 <= count < 50
        assert len(frames.read(cut, range, at_least=count)) == count
        with pytest.raises(VideoError) as plain:
            read_clip(train.path(cut), range, at_least=count + 1)
        with pytest.raises(VideoError) as stored:
            frames.read(cut, range, at_least=count + 1)
        assert str(stored.value) == str(plain.value)


@given(st.lists(st.integers(0, 5), max_size=20))
def test_last_record_of_a_video_is_used(written):
    records = [Record(str(video), n, 0, 0, 0, 0, 1, 0, "\ud8ff\n") for n, video in enumerate(written)]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, INDEX).write_bytes(b"".join(record.line() for record in records))
        Path(folder, DATA).touch()
        assert read_records(Path(folder)) == {record.video: record for record in records}


def interrupted(videos: Path, folder: Path, mode: str, number: int) -> tuple[dict[str, object], str]:
    program = Path(__file__).with_name("interrupted_builds.py")
    command = [sys.executable, str(program), str(videos), str(folder), mode, str(number)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def few_videos(tmp_path_factory, write_video) -> Path:
    """Return a root without splits, so that both parts contain all videos."""
    root = tmp_path_factory.mktemp("few")
    for number in range(5):
        write_video(root / f"class{number % 2}" / f"{number}.mp4", range(10 * number, 10 * number + 6))
    return root


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the builds are made in forked processes")
class TestInterruptions:
    """Builds killed at any file change or stopped by a full disk, which stay valid and can be resumed."""

    @pytest.mark.parametrize("every", [9, 1])
    @pytest.mark.slow
    def test_kill_at_any_file_change(self, few_videos, tmp_path, every):
        result, _ = interrupted(few_videos, tmp_path / "store", "kill", every)
        found = result["found"]
        assert result["kills"] >= 60 // every and found == sorted(found)
        assert found[0] == 0 and found[-1] >= 9

    @pytest.mark.slow
    @pytest.mark.parametrize("size", [300, 30_000])
    def test_full_disk(self, few_videos, tmp_path, size):
        result, said = interrupted(few_videos, tmp_path / "store", "limit", size)
        assert result["ended"] == -2 and "Traceback" not in said
        assert result["found"] == (0 if size == 300 else 2)
        assert "Cannot write the store" in said and "File too large" in said
        assert "It resumes from the stored videos." in said


FORGED = {
    "too few": ["a.mp4", 1],
    "too many": ["a.mp4", *range(9)],
    "a mapping": {"video": "a.mp4"},
    "a number": 3,
    "null": None,
    "list as video": [["a.mp4"], 1, 1, 1, 0, 1, 1, 1, ""],
    "text as size": ["a.mp4", "1", 1, 1, 0, 1, 1, 1, ""],
    "negative offset": ["a.mp4", 1, 1, 1, -9, 1, 1, 1, ""],
    "huge length": ["a.mp4", 1, 1, 1, 0, 2**63, 1, 1, ""],
    "wide number": ["a.mp4", 1, 1, 2**70, 0, 1, 1, 1, ""],
    "fraction": ["a.mp4", 1, 1, 1, 0.5, 1, 1, 1, ""],
    "no reason": ["a.mp4", 1, 1, 1, 0, 1, 1, 1, None],
}


@pytest.mark.parametrize("values", FORGED.values(), ids=FORGED)
def test_a_forged_line_with_its_checksum_is_no_record(tmp_path, values):
    (tmp_path / DATA).write_bytes(bytes(99))
    record = Record("b.mp4", 1, 1, 1, 0, 1, 1, 1, "")
    text = json.dumps(values).encode()
    forged = b"%s %s\n" % (xxh3_64_hexdigest(text).encode(), text)
    deep = b"[" * 60_000
    deep = b"%s %s\n" % (xxh3_64_hexdigest(deep).encode(), deep)
    (tmp_path / INDEX).write_bytes(forged + deep + record.line() + b"\0\xff" * 10**5)
    assert read_records(tmp_path) == {"b.mp4": record}


def test_an_index_that_a_fault_filled_with_zeros_ends_there(tmp_path):
    (tmp_path / DATA).write_bytes(bytes(99))
    record = Record("a.mp4", 1, 1, 1, 0, 1, 1, 1, "")
    with (tmp_path / INDEX).open("wb") as file:
        file.write(record.line())
        file.truncate(2**36)  # sparse; to read it all would take minutes
    assert read_records(tmp_path) == {"a.mp4": record}


@pytest.mark.parametrize("name", [INDEX, KEY])
def test_a_pipe_in_a_store_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    (tmp_path / DATA).touch()
    with pytest.raises(DmgalError, match="a pipe instead of a regular file"):
        read_key(tmp_path) if name == KEY else read_records(tmp_path)
