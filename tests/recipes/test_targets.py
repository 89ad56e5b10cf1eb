"""``dmgal compare`` on several data sets and with text, and the overlap of classes with the training."""

from __future__ import annotations

import json
import shutil

import pytest

from dmgal.cli import main

FEW = ("--episodes", "12", "--quiet")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, save_run):
    folder = tmp_path_factory.mktemp("runs")
    return [save_run(folder / "smga", "smga"), save_run(folder / "frozen", "frozen", "--train.steps", "0")]


@pytest.fixture(scope="module")
def targets(frame_folders, tmp_path_factory):
    """Two data sets: class folders of novel actions, and a split file with three actions of which one was seen."""
    root = tmp_path_factory.mktemp("targets")
    novel, base = (sorted((frame_folders / split).iterdir()) for split in ("test", "train"))
    for folder in novel[:3]:
        shutil.copytree(folder, root / "one" / "data" / f"the {folder.name}")
    for folder in (*novel[:2], base[0]):
        shutil.copytree(folder, root / "other" / "data" / folder.name.upper())
    rows = [
        f"test,{folder.name},{folder.name}/{clip.name}"
        for folder in sorted(path for path in (root / "other" / "data").iterdir())
        for clip in sorted(folder.iterdir())
    ]
    (root / "other" / "data" / "split.csv").write_text("\n".join(["split,class_name,video", *rows]) + "\n")
    return root


def test_runs_are_compared_on_each_target(runs, targets, tmp_path, capsys):
    out, roots = tmp_path / "matrix.json", [str(targets / name / "data") for name in ("one", "other")]
    assert main(["compare", *map(str, runs), "--targets", *roots, "--out", str(out), *FEW]) == 0
    lines, result = capsys.readouterr().out.splitlines(), json.loads(out.read_text())
    assert lines[0].split() == ["method", "one/data", "other/data"] and lines[3].startswith("frozen")
    assert lines[3].count("(") == 2  # paired differences
    assert list(result["targets"]) == ["one/data", "other/data"]
    for numbers in result["targets"].values():
        assert [row["run"] for row in numbers["rows"]] == ["smga", "frozen"]
    single, root = tmp_path / "single.json", targets / "other" / "data"
    data = ["--data.root", str(root), "--data.split-file", str(root / "split.csv")]
    assert main(["compare", *map(str, runs), *data, "--out", str(single), *FEW]) == 0
    rows, numbers = json.loads(single.read_text())["rows"], result["targets"]["other/data"]
    assert [row["results"] for row in rows] == [row["results"] for row in numbers["rows"]]
    assert [row["difference_to_first"] for row in rows] == [row["difference_to_first"] for row in numbers["rows"]]
    assert len(numbers["protocol"]["seen_classes"]["smga"]) == 1


def test_seen_classes_are_reported_by_normalized_name(runs, targets, frame_folders, tmp_path):
    [seen] = [path.name.upper() for path in sorted((frame_folders / "train").iterdir())[:1]]
    out = tmp_path / "result.json"
    root = targets / "other" / "data"
    other = ["--data.root", str(root), "--data.split-file", str(root / "split.csv")]
    assert main(["evaluate", str(runs[0]), *other, "--out", str(out), *FEW]) == 0
    assert json.loads(out.read_text())["protocol"]["seen_classes"] == [seen]
    assert main(["evaluate", str(runs[0]), "--out", str(out), *FEW]) == 0
    assert json.loads(out.read_text())["protocol"]["seen_classes"] == []


def test_runs_are_compared_with_text(runs, targets, tmp_path, capsys):
    root, words = targets / "other" / "data", ("red disc", "blue square", "green cross")
    names = sorted(path.name for path in root.iterdir() if path.is_dir())
    rows = [f"{name},{text}" for name, text in zip(names, words, strict=True)]
    (tmp_path / "words.csv").write_text("\n".join(["class_name,description", *rows]) + "\n")
    out = tmp_path / "text.json"
    text = ["--text.use", "fuse", "--text.weight", "1", "--text.descriptions", str(tmp_path / "words.csv")]
    data = ["--data.root", str(root), "--data.split-file", str(root / "split.csv")]
    assert main(["compare", *map(str, runs), *data, *text, "--out", str(out), *FEW]) == 0
    assert "text: class names and clips" in capsys.readouterr().out
    result = json.loads(out.read_text())
    assert result["protocol"]["text"]["use"] == "fuse" and {row["text"]["weight"] for row in result["rows"]} == {1.0}


def test_unusable_targets_are_one_message(runs, targets, capsys):
    root = str(targets / "one" / "data")
    for words, message in (
        (["--targets", root, root], "given twice"),
        (["--targets", root, "--page", "p.html"], "own"),
    ):
        assert main(["compare", str(runs[0]), *words, *FEW]) == 2
        assert message in capsys.readouterr().err
