"""Tests of moving shapes on disk: generation, resuming after a kill, and protection of other datasets."""

from __future__ import annotations

import csv
import json
import logging
import shutil
import signal
import threading
import time
from pathlib import Path

import forked
import pytest

from dmgal.errors import DmgalError
from dmgal.files import exclusively
from dmgal.videos import VideoCatalog
from dmgal.videos.decoding.video import read_clip
from dmgal.videos.moving_shapes.clips import MovingShapes
from dmgal.videos.moving_shapes.generate import generate_moving_shapes
from dmgal.videos.moving_shapes.motions import all_motions, split_motions

MOTIONS = all_motions()
LOCK_FILE, MANIFEST, PROMISE = ".moving_shapes.lock", "moving_shapes.json", "moving_shapes.unfinished.json"
SMALL = {"seed": 100, "clips_per_class": 1, "frames": 8, "pixels": 16}
KILLED_RUN = """
import json, os, signal, sys
from pathlib import Path
from dmgal.videos import generated
from dmgal.videos.moving_shapes.generate import generate_moving_shapes

def write_five_videos(path, clip, write_video=generated.write_video, written=[]):
    if len(written) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    write_video(path, clip)
    written.append(path)

generated.write_video = write_five_videos
generate_moving_shapes(Path(sys.argv[1]), **json.loads(sys.argv[2]), workers=1)
"""


@pytest.fixture(scope="module")
def small_set(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("moving") / "shapes"
    assert generate_moving_shapes(root, **SMALL, workers=1, progress=False) == root / "split.csv"
    return root


@pytest.fixture
def copied_set(small_set, tmp_path) -> Path:
    return Path(shutil.copytree(small_set, tmp_path / "shapes"))


def contents(root: Path) -> dict[str, bytes]:
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def times_of_change(root: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in root.rglob("*.mp4")}


def generate_in_a_process(root: Path) -> forked.Program:
    code = "import sys, json; from pathlib import Path"
    code += "; from dmgal.videos.moving_shapes.generate import generate_moving_shapes"
    code += "; generate_moving_shapes(Path(sys.argv[1]), **json.loads(sys.argv[2]), workers=1)"
    return forked.start(["-c", code, str(root), json.dumps(SMALL)])


class TestGenerate:
    def test_catalog_reads_the_dataset(self, small_set):
        catalog = VideoCatalog.from_csv(small_set / "split.csv", small_set)
        assert len(catalog) == 100 and len(catalog.reversal_pairs) == 46
        split = split_motions(100)
        for name, count in (("train", 64), ("val", 12), ("test", 24)):
            assert len(catalog.split(name).class_names) == count
            assert set(catalog.split(name).class_names) == {MOTIONS[c].name for c in split[name]}
        assert len(catalog.split("test").reversal_pairs) == 11 and len(catalog.split("val").reversal_pairs) >= 5

    def test_files_contain_the_clips(self, tmp_path, small_set):
        shapes = MovingShapes(**SMALL)
        with (small_set / "split.csv").open() as file:
            rows = list(csv.DictReader(file))
        for row in rows[::20]:
            number = next(i for i, motion in enumerate(MOTIONS) if motion.name == row["class_name"])
            seen = read_clip(small_set / row["video"], range).float()
            drawn = shapes.clip(number, 0).float()
            assert seen.shape == (8, 3, 16, 16)
            assert (seen - drawn).abs().mean() < 10 < (seen.flip(0) - drawn).abs().mean()

    def test_finished_dataset_is_unchanged(self, copied_set):
        before = times_of_change(copied_set)
        (copied_set / LOCK_FILE).unlink()
        generate_moving_shapes(copied_set, **SMALL)
        assert times_of_change(copied_set) == before
        assert not (copied_set / LOCK_FILE).exists()  # no write permission is needed

    def test_missing_and_damaged_clips_are_regenerated(self, copied_set, small_set):
        videos = sorted(copied_set.rglob("*.mp4"))
        videos[0].unlink()
        videos[1].write_bytes(videos[1].read_bytes()[:500])
        untouched = times_of_change(copied_set).items() - {(v, v.stat().st_mtime_ns) for v in videos[1:2]}
        generate_moving_shapes(copied_set, **SMALL, workers=1, progress=False)
        assert contents(copied_set) == contents(small_set)
        assert untouched <= times_of_change(copied_set).items()

    def test_missing_split_file_is_rewritten(self, copied_set, small_set):
        (copied_set / "split.csv").unlink()
        generate_moving_shapes(copied_set, **SMALL, workers=1, progress=False)
        assert contents(copied_set) == contents(small_set)

    def test_killed_run_is_resumed(self, tmp_path, small_set):
        root = tmp_path / "shapes"
        process = forked.run(["-c", KILLED_RUN, str(root), json.dumps(SMALL)])
        assert process.returncode == -signal.SIGKILL, process.stderr
        assert len(list(root.rglob("*.mp4"))) == 5
        assert (root / PROMISE).exists() and not (root / MANIFEST).exists()
        half = next(root.rglob("*.mp4"))
        half.write_bytes(half.read_bytes()[:-100])
        with pytest.raises(DmgalError, match="seed=101"):
            generate_moving_shapes(root, **{**SMALL, "seed": 101})
        generate_moving_shapes(root, **SMALL, workers=1, progress=False)
        assert contents(root) == contents(small_set)

    def test_two_simultaneous_runs_give_the_dataset_of_one(self, tmp_path, small_set):
        root = tmp_path / "shapes"
        programs = [generate_in_a_process(root) for _ in range(2)]
        assert [program.wait() for program in programs] == [[0], [0]], [program.stderr for program in programs]
        assert contents(root) == contents(small_set)

    def test_second_run_waits_and_logs(self, tmp_path, small_set, caplog):
        root = tmp_path / "shapes"
        root.mkdir()
        second = threading.Thread(target=generate_moving_shapes, args=(root,), kwargs=SMALL)
        caplog.set_level(logging.INFO, "dmgal")
        with exclusively(root / LOCK_FILE, lambda: pytest.fail("nobody else holds the lock")):
            second.start()
            while "Waiting" not in caplog.text:
                assert second.is_alive()
                time.sleep(0.01)
            shutil.copytree(small_set, root, dirs_exist_ok=True, ignore=shutil.ignore_patterns(LOCK_FILE))
            before = times_of_change(root)
        second.join()
        assert "found finished" in caplog.text
        assert times_of_change(root) == before

    @pytest.mark.parametrize("other", [{"seed": 101}, {"frames": 16}, {"pixels": 32}, {"clips_per_class": 2}])
    def test_dataset_with_other_settings_raises(self, copied_set, other):
        before = contents(copied_set)
        ((name, value),) = other.items()
        with pytest.raises(DmgalError) as refusal:
            generate_moving_shapes(copied_set, **{**SMALL, **other})
        assert f"{name}={SMALL[name]}" in str(refusal.value) and f"{name}={value}" in str(refusal.value)
        assert contents(copied_set) == before

    def test_dataset_of_another_look_raises(self, copied_set):
        with pytest.raises(DmgalError, match="moving shapes, dark"):
            generate_moving_shapes(copied_set, **SMALL, look="dark")
        manifest = json.loads((copied_set / MANIFEST).read_text())
        assert "look" not in manifest
        (copied_set / MANIFEST).write_text(json.dumps({**manifest, "data_set": "moving shapes, dark"}))
        with pytest.raises(DmgalError, match="a dataset with data_set='moving shapes, dark'"):
            generate_moving_shapes(copied_set, **SMALL)

    def test_folder_with_other_videos_raises(self, tmp_path):
        (tmp_path / "train").mkdir()
        with pytest.raises(DmgalError, match=r"train, but no moving_shapes\.json"):
            generate_moving_shapes(tmp_path, **SMALL)
        assert not (tmp_path / PROMISE).exists()

    def test_root_that_cannot_be_created_raises(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(DmgalError, match="Cannot generate moving shapes"):
            generate_moving_shapes(tmp_path / "file" / "shapes", **SMALL)

    def test_zero_workers_raise(self, tmp_path):
        with pytest.raises(DmgalError, match="workers=0"):
            generate_moving_shapes(tmp_path, workers=0)
