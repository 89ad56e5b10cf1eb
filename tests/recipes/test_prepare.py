"""Preparing data: matching a download to a standard split, checking every video, and what recipes make of it."""

from __future__ import annotations

import csv
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import termios
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import yaml
from preparing import prepare, report, summary

from dmgal.cli import main
from dmgal.errors import DmgalError
from dmgal.progress import printed_messages
from dmgal.recipes.run.config import DataConfig, Recipe
from dmgal.recipes.run.data import build_catalog
from dmgal.recipes.run.layers import from_mapping, read_layer
from dmgal.videos.catalog.lists import FACTS, STANDARD_SPLITS, read_rows, standard_split_file

FRAMES = 30


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> bytes:
    """An mp4 file with its index in front: cut anywhere, what stands before the cut decodes."""
    path, noise = tmp_path_factory.mktemp("film") / "a.mp4", np.random.default_rng(0)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0", "g": "5"})
        stream.width = stream.height = 64
        for _ in range(FRAMES):
            image = noise.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path.read_bytes()


@pytest.fixture
def videos(tmp_path, sound) -> Path:
    """A class in train and one in val: whole videos, one cut late, one cut early, one that is none."""
    contents = {"1": sound, "2": sound, "3": sound, "cut late": sound[: len(sound) * 3 // 4], "none": b"no video"}
    for folder in ("train/dive", "val/run"):
        (tmp_path / "videos" / folder).mkdir(parents=True)
        for video, content in contents.items():
            (tmp_path / "videos" / folder / f"{video}.mp4").write_bytes(content)
    (tmp_path / "videos/val/run/cut early.mp4").write_bytes(sound[: len(sound) // 4])
    return tmp_path / "videos"


def test_class_folders_are_checked_and_reported(tmp_path, videos, capsys):
    out = tmp_path / "out"
    assert prepare("--root", videos, "--out", out, "--num-frames", 12) == 0
    found = report(out)
    both = {f"{folder}/{name}.mp4" for folder in ("train/dive", "val/run") for name in ("cut late", "none")}
    assert set(found) == {*both, "val/run/cut early.mp4"}
    assert 12 <= found["val/run/cut late.mp4"][0] < FRAMES and 1 <= found["val/run/cut early.mp4"][0] < 12
    assert found["val/run/none.mp4"][0] == 0 and all(problem for _, problem in found.values())
    counts = {"videos": 11, "missing": 0, "num_frames": 12, "sound": 6, "salvaged": 2, "bad": 3}
    copies = {"across_splits": 2, "across_classes": 0, "within_a_class": 0}
    assert summary(out) == {"dataset": None, **counts, "equal_content": copies}
    told = capsys.readouterr().out
    assert "checked 11 videos: 6 sound, 2 damaged but used (at least 12 frames decode), 3 bad" in told
    assert "bad   val/run/none.mp4: " in told and "--data.on-bad-video skip" in told
    layer = yaml.safe_load((out / "data.yaml").read_text())["data"]
    files = {"split_file": str(out / "split.csv"), "report": str(out / "report.csv")}
    never_mirrored = {"flip": False, "may_flip": True, "crop_scale": [0.5, 1.0], "color_jitter": 0.2}
    assert layer == {"root": str(videos), "generate": "no", **files, **never_mirrored, "test_resize": 1.142857}


def test_stopped_check_resumes(tmp_path, videos, capsys, sound):
    out = tmp_path / "out"
    assert prepare("--root", videos, "--out", out) == 0
    log = out / "checked.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    assert len(lines) == 12 and json.loads(lines.pop(0)) == {"root": str(videos)}
    # what was checked stands as it is, though it be wrong; half a line does not
    kept = [line.replace('"frames": 30', '"frames": 99') for line in lines[:6]]
    head = json.dumps({"root": str(videos)}) + "\n"
    log.write_text(head + "".join(kept) + lines[6][:20])
    (videos / "train/dive/none.mp4").write_bytes(sound)  # repaired
    assert prepare("--root", videos, "--out", out) == 0
    after = log.read_text().splitlines(keepends=True)
    repaired = sum('"train/dive/none.mp4"' in line for line in kept)
    assert after[:7] == [head, *kept] and len(after) == 12 + repaired
    assert f"{6 - repaired} of 11 videos were checked before" in capsys.readouterr().err
    assert "train/dive/none.mp4" not in report(out) and summary(out)["sound"] == 7
    assert prepare("--root", videos, "--out", out, "--recheck") == 0
    assert len(log.read_text().splitlines()) == 12 and '"frames": 99' not in log.read_text()


def test_files_after_a_kill_are_those_of_an_undisturbed_run(tmp_path, videos):
    out, names = tmp_path / "out", ("data.yaml", "report.csv", "equal.csv", "split.csv", "missing.csv", "summary.json")
    assert prepare("--root", videos, "--out", out) == 0
    undisturbed = {name: (out / name).read_bytes() for name in names}
    log = (out / "checked.jsonl").read_bytes()
    for end in (len(log), len(log) - 9):  # killed after the check, or while the last result was written
        shutil.rmtree(out)
        out.mkdir()
        (out / "checked.jsonl").write_bytes(log[:end])
        (out / f".123.{names[0]}").write_bytes(b"half a fi")
        assert prepare("--root", videos, "--out", out) == 0
        assert {name: (out / name).read_bytes() for name in names} == undisturbed


def test_changed_or_other_files_are_checked_again(tmp_path, videos, capsys, sound):
    out, other = tmp_path / "out", tmp_path / "other"
    assert prepare("--root", videos, "--out", out) == 0 and summary(out)["sound"] == 6
    (videos / "train/dive/1.mp4").write_bytes(b"no video any more")
    assert prepare("--root", videos, "--out", out) == 0
    assert summary(out)["sound"] == 5 and report(out)["train/dive/1.mp4"][0] == 0
    assert "10 of 11 videos were checked before" in capsys.readouterr().err
    shutil.copytree(videos, other, copy_function=shutil.copy2)  # the same names, sizes and times
    for video in (other / "val/run").iterdir():
        times = video.stat().st_atime_ns, video.stat().st_mtime_ns
        video.write_bytes(bytes(video.stat().st_size))
        os.utime(video, ns=times)
    assert prepare("--root", other, "--out", out) == 0
    printed = capsys.readouterr().err
    assert "earlier check was of another folder" in printed and "videos were checked before" not in printed
    assert summary(out)["sound"] == 2


def test_earlier_report_is_used_without_another_check(tmp_path, videos):
    out, other = tmp_path / "out", tmp_path / "other"
    assert prepare("--root", videos, "--out", out) == 0
    assert prepare("--root", videos, "--out", out, "--no-check") == 0
    assert yaml.safe_load((out / "data.yaml").read_text())["data"]["report"] == str(out / "report.csv")
    shutil.copytree(videos, other)
    assert prepare("--root", other, "--out", out, "--no-check") == 0
    assert "report" not in yaml.safe_load((out / "data.yaml").read_text())["data"]


@pytest.mark.parametrize("name", STANDARD_SPLITS)
def test_written_layer_of_a_standard_split_equals_the_bundled_one(tmp_path, name):
    *_, video, _ = next(read_rows(standard_split_file(name)))
    root, out = tmp_path / "download", tmp_path / "out"
    root.mkdir()
    (root / f"{video}.mp4").write_bytes(b"")
    assert prepare("--dataset", name, "--root", root, "--out", out, "--no-check") == 0
    written = from_mapping(Recipe, read_layer(str(out / "data.yaml"))).data
    bundled = from_mapping(Recipe, read_layer(f"data/{name}")).data
    assert written == replace(bundled, root=root, split_file=out / "split.csv")
    assert written.name == name and written.flip == written.may_flip == FACTS[name].mirror
    assert written.crop_scale == (0.5, 1.0) and written.test_resize > 1


def test_values_of_the_users_layer_are_written(tmp_path, videos):
    (tmp_path / "mine.yaml").write_text("data: {may_flip: false, color_jitter: 0.7, crop_scale: [0.9, 1]}")
    words = [tmp_path / "mine.yaml", "--root", videos, "--out", tmp_path / "out", "--no-check"]
    assert prepare(*words) == 0
    layer = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())["data"]
    said = {"flip": False, "may_flip": False, "color_jitter": 0.7, "crop_scale": [0.9, 1.0], "test_resize": 1.0}
    assert {key: layer[key] for key in said} == said
    (tmp_path / "1.mp4").write_bytes(b"")
    rows = list(read_rows(standard_split_file("ucf101")))
    (videos / f"{rows[0][2]}.mp4").write_bytes(b"")
    assert prepare(*words, "--dataset", "ucf101") == 2, "mirrored, says the data set; never, says the user"


@printed_messages()
def test_catalog_skips_or_refuses_reported_videos(tmp_path, videos, capsys):
    out = tmp_path / "out"
    (videos / "test/third").mkdir(parents=True)
    shutil.copy(videos / "val/run/1.mp4", videos / "test/third/1.mp4")
    assert prepare("--root", videos, "--out", out) == 0
    data = {"root": videos, "report": out / "report.csv"}
    with pytest.raises(DmgalError, match=r"3 of 12 videos cannot be used(.|\n)*none.mp4 \((.|\n)*on-bad-video skip"):
        build_catalog(DataConfig(**data, num_frames=12))
    catalog = build_catalog(DataConfig(**data, num_frames=12, on_bad_video="skip"))
    assert len(catalog) == 9 and "val/run/cut late.mp4" in catalog.videos
    assert "val/run/cut early.mp4" not in catalog.videos
    told = capsys.readouterr().err
    assert "skipped 3 of 12 videos, bad by " in told and "val/run/cut early.mp4" in told
    assert len(build_catalog(DataConfig(**data, num_frames=2, on_bad_video="skip"))) == 10
    (videos / "test/third/1.mp4").write_bytes(b"")
    assert prepare("--root", videos, "--out", out, "--recheck") == 0
    with pytest.raises(DmgalError, match=r"left without a video(.|\n)*third"):
        build_catalog(DataConfig(**data, on_bad_video="skip"))
    with pytest.raises(DmgalError, match="cannot read the report"):
        build_catalog(DataConfig(root=videos, report=videos))


@printed_messages()
def test_missing_listed_videos_are_reported(tmp_path, videos, capsys):
    lists, out = tmp_path / "lists", tmp_path / "out"
    lists.mkdir()
    (lists / "train.txt").write_text("train/dive/1\r\ntrain/dive/2\r\ntrain/dive/gone\r\n")
    (lists / "val.txt").write_text("val/run/1.mp4 30 0\nval/run/none.mp4 30 0\n")
    assert prepare("--root", videos, "--split-file", lists, "--out", out) == 0
    assert summary(out)["missing"] == 1 and set(report(out)) == {"val/run/none.mp4"}
    assert (out / "missing.csv").read_text() == "split,class_name,video\ntrain,dive,train/dive/gone\n"
    assert "1 listed videos are missing" in capsys.readouterr().err
    layer = yaml.safe_load((out / "data.yaml").read_text())["data"]
    files = {name: Path(layer[name]) for name in ("root", "split_file", "report")}
    prepared = DataConfig(**files, on_bad_video="skip")
    assert build_catalog(prepared).videos == ("train/dive/1.mp4", "train/dive/2.mp4", "val/run/1.mp4")
    direct = DataConfig(root=videos, split_file=lists, on_bad_video="skip")
    assert build_catalog(direct).class_splits == ("train", "val")
    assert "skipped 1 of 5 videos, not there: train/dive/gone" in capsys.readouterr().err
    with pytest.raises(DmgalError, match=r"1 of 5 not found(.|\n)*dmgal prepare"):
        build_catalog(DataConfig(root=videos, split_file=lists))


def test_standard_split_is_matched_to_a_download(tmp_path, sound, capsys):
    rows = [row for row in read_rows(standard_split_file("kinetics100")) if row[1] in ("air drumming", "busking")]
    train = [video for split, _, video, _ in rows if split == "train"]
    test = [video for split, _, video, _ in rows if split == "test"]
    root, out = tmp_path / "download", tmp_path / "out"
    for video in train[:-2]:
        (root / "train" / "air_drumming").mkdir(parents=True, exist_ok=True)
        (root / "train" / "air_drumming" / f"{video[:11]}.MP4").write_bytes(b"")
    for video in test:
        (root / "busking").mkdir(exist_ok=True)
        (root / "busking" / f"{video}.webm").write_bytes(b"")
    for number in range(4):
        (root / f"unlisted{number}.mp4").write_bytes(b"")
    assert prepare("--dataset", "kinetics100", "--root", root, "--out", out, "--no-check") == 0
    told = capsys.readouterr().out
    assert "198 of 10,000 videos found" in told
    assert "train 98 of 6,400 videos; 0 of 64 classes complete" in told
    assert "test  100 of 2,400 videos; 1 of 24 classes complete" in told
    assert "training also requires videos of val" in told and "dmgal train" not in told
    assert "4 other videos, such as unlisted" in told and "are not listed" in told
    assert "without a video and so left out, 63 of 64 classes: " in told and " and 58 more" in told
    assert "98 of 100" not in told and "1 more class lacks videos: found.csv" in told
    assert len(told.splitlines()) < 15
    found = summary(out)
    assert found["found"] == {"train": 98, "val": 0, "test": 100} and found["missing"] == 9802
    with (out / "found.csv").open(newline="") as file:
        per_class = {row["class_name"]: (int(row["listed"]), int(row["found"])) for row in csv.DictReader(file)}
    assert per_class["air drumming"] == (100, 98) and per_class["busking"] == (100, 100)
    assert sum(there for _, there in per_class.values()) == 198 and len(per_class) == 100
    with (out / "missing.csv").open(newline="") as file:
        missing = [row["video"] for row in csv.DictReader(file)]
    assert len(missing) == 9802 and set(train[-2:]) < set(missing) and not set(train[:-2]) & set(missing)
    layer = yaml.safe_load((out / "data.yaml").read_text())["data"]
    assert layer["flip"] is True and "report" not in layer
    catalog = build_catalog(DataConfig(root=root, split_file=out / "split.csv"))
    assert len(catalog.split("test")) == 100 and catalog.split("train").class_names == ("air drumming",)


def test_matched_videos_are_checked(tmp_path, sound, capsys):
    rows = list(read_rows(standard_split_file("ssv2_small")))[::1700]
    root, out = tmp_path / "download", tmp_path / "out"
    root.mkdir()
    for number, (_, _, video, _) in enumerate(rows):
        (root / f"{video}.webm").write_bytes(sound if number else b"not a video")
    assert prepare("--dataset", "ssv2_small", "--root", root, "--out", out) == 0
    assert set(report(out)) == {f"{rows[0][2]}.webm"} and summary(out)["sound"] == len(rows) - 1
    told = capsys.readouterr().out
    assert f"dmgal train method/dmgal_adapter {out / 'data.yaml'} --data.on-bad-video skip" in told


def test_printed_next_command_is_quoted(tmp_path, videos, capsys):
    out = tmp_path / "my prepared 'data'"
    assert prepare("--root", videos, "--out", out, "--no-check") == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("next: "))
    assert shlex.split(line)[1:] == ["dmgal", "train", "method/dmgal_adapter", str(out / "data.yaml")]


def test_folder_without_classes_is_only_checked(tmp_path, videos, capsys):
    assert prepare("--root", videos / "val/run", "--out", tmp_path / "out") == 0
    assert summary(tmp_path / "out")["videos"] == 6 and "dmgal train" not in capsys.readouterr().out


def test_training_and_evaluation_skip_bad_videos(tmp_path, frame_folders, data_flags, capfd):
    root, run = tmp_path / "frames", tmp_path / "run"
    shutil.copytree(frame_folders, root)
    bad = [next(iter(sorted((root / split).iterdir()))) / "0" for split in ("val", "test")]
    for clip in [*(path / "0" for path in (root / "train").iterdir()), *bad]:  # one of each training class
        for frame in clip.iterdir():
            frame.write_bytes(b"no picture")
    flags = [word.replace(str(frame_folders), str(root)) for word in data_flags]
    train = ["train", "method/smga", *flags, "--train.steps", "3", "--out", str(run)]
    assert main([*train, "--data.on-bad-video", "skip"]) == 0
    told = capfd.readouterr().err
    assert "/val/" in told and "it is left out" in told
    assert "/train/" in told and "others of its class take its place" in told
    assert "of 24 train videos, which could not be read: train/" in told
    assert "skipped 1 of 12 val videos, which could not be read: val/" in told
    assert main(["evaluate", str(run), "--episodes", "10", "--quiet"]) == 0
    assert "skipped 1 of 16 videos, which could not be read: test/" in capfd.readouterr().err


def test_evaluation_without_all_videos_names_the_remedy(tmp_path, frame_folders, save_run, capfd):
    root, moved, run = tmp_path / "frames", tmp_path / "moved", tmp_path / "run"
    shutil.copytree(frame_folders, root)
    save_run(run, "frozen", "--data.root", str(root), "--data.split-file", str(root / "split.csv"))
    root.rename(moved)
    for frame in next(iter(sorted((moved / "test").iterdir()))).joinpath("0").iterdir():
        frame.write_bytes(b"no picture")
    here = ["--data.root", str(moved), "--data.split-file", str(moved / "split.csv"), "--episodes", "10", "--quiet"]
    for command in (["evaluate", str(run)], ["compare", str(run), str(run)]):
        assert main([*command, "--episodes", "10", "--quiet"]) == 2
        assert main([*command, *here]) == 2
        told = capfd.readouterr().err
        assert "--data.on-bad-video skip" in told
        assert main([*command, *here, "--data.on-bad-video", "skip"]) == 0
        assert "skipped 1 of 16 videos" in capfd.readouterr().err


@pytest.mark.parametrize("workers", ["0", "-2"])
def test_invalid_number_of_workers_raises(tmp_path, videos, capsys, workers):
    assert main(["prepare", "--root", str(videos), "--out", str(tmp_path / "out"), "--workers", workers]) == 2
    assert f"received: --workers {workers}\n" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_closed_output_pipe_is_not_reported_as_a_disk_error(tmp_path, videos):
    words = ["prepare", "--root", str(videos), "--out", str(tmp_path / "out"), "--no-check"]
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-u", "-m", "dmgal", *words]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=300)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_unwritable_output_folder_raises(tmp_path, videos, capsys):
    (tmp_path / "file").write_text("")
    assert prepare("--root", videos, "--out", tmp_path / "file" / "out") == 2
    assert "cannot be prepared" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("command", ["prepare", "store"])
def test_interruption_while_processes_start_prints_one_line(tmp_path, videos, command):
    """Ctrl-C reaches the whole group of processes."""
    data = {"prepare": ["--root"], "store": ["--size", "32", "--data.seed", "1", "--data.root"]}[command]
    (videos / "test/third").mkdir(parents=True)
    for number in range(20):
        shutil.copy(videos / "val/run/1.mp4", videos / f"test/third/{number}.mp4")
    words = [command, *data, str(videos), "--out", str(tmp_path / "out"), "--workers", "2"]
    terminal, stderr = pty.openpty()
    termios.tcsetwinsize(stderr, (24, 120))
    process = subprocess.Popen(
        [sys.executable, "-m", "dmgal", *words],
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in a shell's background ignores it
    )
    os.close(stderr)
    told = b""
    while not re.search(rb"(check|store test): .*video/s\]", told):  # the bar stands; now the processes start
        told += os.read(terminal, 1)  # fails if the process ends
    os.killpg(process.pid, signal.SIGINT)
    with suppress(OSError):  # when the process has ended
        while True:
            told += os.read(terminal, 4096)
    os.close(terminal)
    process.wait(timeout=300)
    last = told.decode().replace("\r", "\n").strip().splitlines()[-1]
    assert process.returncode == 130 and last == "interrupted: the same command resumes from here"
    assert b"Traceback" not in told and b"KeyboardInterrupt" not in told
