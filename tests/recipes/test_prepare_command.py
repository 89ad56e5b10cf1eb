"""The command ``dmgal prepare``: mistakes, help, and what it says of real videos."""

from __future__ import annotations

import pytest
from preparing import prepare, report, summary

from dmgal.cli import main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "The location of the videos is missing"),
        (["--root", "nowhere"], "folder of the videos is missing"),
        (["--dataset", "ucf101", "--root", "nowhere"], "folder of the videos is missing"),
        (["--dataset", "ucf101", "--root", ".", "--split-file", "x.csv"], "Only one split can be used"),
        (["no/such_layer"], "layer was not found"),
        (["--root", ".", "--num-frames", "0"], "received: --num-frames 0\n"),
        (["--root", ".", "--seconds-per-video", "0"], "received: --seconds-per-video 0\n"),
    ],
)
def test_invalid_arguments_raise(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert prepare(*words) == 2
    told = capsys.readouterr().err
    assert message in told and "what to do: " in told
    assert not list(tmp_path.iterdir()), "nothing is made before something was found"


def test_download_without_listed_videos_raises(tmp_path, capsys):
    (tmp_path / "holiday.mp4").write_bytes(b"")
    assert prepare("--dataset", "ucf101", "--root", tmp_path, "--out", tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert "No video of ucf101 was found" in told and "v_ApplyEyeMakeup_g01" in told
    assert "1 other video, such as holiday.mp4, is in " in told and not (tmp_path / "out").exists()


def test_help_names_options_and_files(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["prepare", "--help"])
    assert not ended.value.code
    told = " ".join(capsys.readouterr().out.split())
    for words in (
        "dmgal prepare --dataset ssv2_small --root DOWNLOAD",
        "report.csv",
        "missing.csv",
        "found.csv",
        "checked.jsonl",
        "A stopped check resumes",
    ):
        assert words in told


def test_real_videos(tmp_path, test_data, capsys):
    cases = test_data / "videos" / "decoder_cases"
    assert prepare("--root", cases, "--out", tmp_path / "cases") == 0
    found = report(tmp_path / "cases")
    assert found.pop("truncated_28_of_50_frames.mp4")[0] == 28
    assert {video: frames for video, (frames, _) in found.items()} == {"empty.flv": 0, "not_a_video.mp4": 0}
    assert prepare("--root", test_data / "videos" / "ssv2_mini", "--out", tmp_path / "mini") == 0
    assert summary(tmp_path / "mini") | {"num_frames": 8} == {
        "dataset": None,
        "videos": 150,
        "missing": 0,
        "num_frames": 8,
        "sound": 150,
        "salvaged": 0,
        "bad": 0,
        "equal_content": {"across_splits": 0, "across_classes": 0, "within_a_class": 1},
    }
    words = ["--dataset", "ssv2_full", "--root", test_data / "videos", "--out", tmp_path / "full", "--no-check"]
    assert prepare(*words) == 0
    assert sum(summary(tmp_path / "full")["found"].values()) == 150


def test_files_that_are_not_videos_are_counted(tmp_path, capsys):
    root, out = tmp_path / "data", tmp_path / "out"
    names = (
        "train/a/1.mp4",
        "train/a/1.SRT",
        "train/a/2.srt",
        "val/b/1.MTS",
        "val/b/README",
        "val/b/x.jpg",
        "val/b/.x",
    )
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    assert prepare("--root", root, "--out", out, "--no-check") == 0
    line = "left out of the class folders, because they are not videos: 2 .srt, 1 "
    told = capsys.readouterr().err
    assert line in told and "1 without an extension" in told and "1 .jpg" in told
    (root / "train" / "a" / "1.SRT").unlink()
    assert prepare("--root", root, "--split-file", out / "split.csv", "--out", out, "--no-check") == 0
    assert "not videos" not in capsys.readouterr().err
