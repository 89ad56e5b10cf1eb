"""Copies of videos under other names: ``dmgal prepare`` finds them by their content."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from preparing import prepare, summary

from dmgal.videos.catalog.files import quick_hash


def picture(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (value, value, value)).save(file, format="PNG")
    return file.getvalue()


def write(path: Path, value: int) -> None:
    """Write a video that depends on its path's kind and on ``value``: a frame folder, a zip file or a GIF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gif":
        Image.new("RGB", (16, 16), (value, 0, 0)).save(path)
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(zipfile.ZipInfo("1.png"), picture(value))
    else:
        path.mkdir()
        for number in range(2):
            (path / f"{number}.png").write_bytes(picture(value + number))


@pytest.mark.parametrize("kind", ["", ".zip", ".gif"])
@pytest.mark.parametrize(
    ("names", "spread"),
    [
        (("train/a/copy", "test/c/copy"), "across splits"),
        (("train/a/copy", "train/a/other", "val/b/1", "test/c/copy"), "across splits"),
        (("train/a/copy", "train/d/copy"), "across classes"),
        (("val/b/copy", "val/b/other"), "within a class"),
    ],
)
def test_copies_are_reported(tmp_path, capsys, kind, names, spread):
    root, out = tmp_path / "data", tmp_path / "out"
    for value, name in enumerate(("train/a/1", "train/d/1", "val/b/1", "test/c/1")):
        write(root / f"{name}{kind}", 200 if name in names else 10 * value)
    for name in names:
        if not (root / f"{name}{kind}").exists():
            write(root / f"{name}{kind}", 200)
    assert prepare("--root", root, "--out", out) == 0
    told = capsys.readouterr().out
    copies = "1 video is a copy of another" if len(names) == 2 else "3 videos are copies of others"
    assert f"equal content: {copies}; groups: " in told
    assert f"1 {spread}" in told and ("make results too high" in told) == (spread == "across splits")
    assert summary(out)["equal_content"].pop(spread.replace(" ", "_")) == 1
    assert sum(summary(out)["equal_content"].values()) == 1
    with (out / "equal.csv").open(newline="") as file:
        rows = [(row["group"], row["split"], row["class_name"], row["video"]) for row in csv.DictReader(file)]
    assert sorted(rows) == sorted(("1", *name.split("/")[:2], f"{name}{kind}") for name in names)
    shown = next(line for line in told.splitlines() if line.startswith(f"  {spread}  ")).removeprefix(f"  {spread}  ")
    assert {name.split("/")[0] for name in shown.split(", ")} == {name.split("/")[0] for name in names}


def test_resumed_check_knows_contents_and_lines_of_earlier_versions_do_not_count(tmp_path, capsys):
    root, out = tmp_path / "data", tmp_path / "out"
    for name in ("train/a/1", "test/c/1", "test/c/2"):
        write(root / f"{name}.gif", 200 if "1" in name else 3)
    assert prepare("--root", root, "--out", out) == 0
    report = (out / "equal.csv").read_bytes()
    assert prepare("--root", root, "--out", out) == 0
    assert "3 of 3 videos were checked before" in capsys.readouterr().err and (out / "equal.csv").read_bytes() == report
    head, *lines = (out / "checked.jsonl").read_text().splitlines()
    old = [json.dumps({key: value for key, value in json.loads(line).items() if key != "content"}) for line in lines]
    (out / "checked.jsonl").write_text("\n".join([head, *old, ""]))
    assert prepare("--root", root, "--out", out) == 0
    assert "checked before" not in capsys.readouterr().err and (out / "equal.csv").read_bytes() == report
    write(root / "test" / "c" / "1.gif", 77)
    assert prepare("--root", root, "--out", out) == 0
    assert len((out / "equal.csv").read_text().splitlines()) == 1


def test_videos_without_classes_and_bad_videos(tmp_path, capsys):
    root, out = tmp_path / "data", tmp_path / "out"
    for number in (1, 2):
        write(root / f"{number}.gif", 5)
        (root / f"bad{number}.mp4").write_bytes(b"the same web page")
    assert prepare("--root", root, "--out", out) == 0
    assert summary(out)["equal_content"] == {"across_splits": 0, "across_classes": 0, "within_a_class": 1}
    assert "  within a class  1.gif, 2.gif\n" in capsys.readouterr().out
    assert quick_hash(root / "absent") == 0 and quick_hash(root / "1.gif") == quick_hash(root / "2.gif") > 0
