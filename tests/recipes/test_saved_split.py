"""A split that was drawn stays that of its run, also where classes come or go."""

from __future__ import annotations

import json
import shutil

import pytest

from dmgal.cli import main
from dmgal.recipes.run.data import read_split, split_of, with_saved_split
from dmgal.videos import VideoCatalog


@pytest.fixture
def root(tmp_path, frame_folders):
    """Folders of classes, without splits."""
    for folder in frame_folders.glob("*/*/"):
        shutil.copytree(folder, tmp_path / "videos" / folder.name)
    return tmp_path / "videos"


def flags(root):
    """Return flags for data without a split."""
    return ["--data.root", str(root), "--data.split-file", "None", "--train.steps", "1"]


def evaluated(out):
    assert main(["evaluate", str(out), "--episodes", "10", "--quiet"]) == 0
    return json.loads((out / "results" / "test_2way_1shot_1query_10episodes_seed0.json").read_text())["results"]


@pytest.mark.slow
def test_new_class_is_not_evaluated_and_raises_on_resume(root, tmp_path, data_flags, save_run, capsys):
    out = save_run(tmp_path / "run", "smga", *flags(root))
    before, split = evaluated(out), read_split(out / "split.csv")
    assert len(split) == 13 and set(split.values()) == {"train", "val", "test"}
    for name in ("aaa", "zzz"):
        shutil.copytree(next(root.iterdir()), root / name)
    assert split_of(VideoCatalog.from_folders(root).with_seeded_split(0)).items() & split.items() != split.items()
    capsys.readouterr()
    assert evaluated(out) == before
    assert "new and left out: aaa, zzz" in capsys.readouterr().err
    assert main(["compare", str(out), str(out), "--episodes", "10", "--quiet"]) == 0
    assert "new and left out: aaa, zzz" in capsys.readouterr().err
    resume = ["train", "method/smga", *data_flags, *flags(root), "--out", str(out), "--resume"]
    assert main(resume) == 2
    message = capsys.readouterr().err
    assert "split.aaa=" in message and "split.zzz=" in message and "--accept-changes" in message
    assert read_split(out / "split.csv") == split
    assert main([*resume, "--accept-changes"]) == 0
    assert {"aaa", "zzz"} < set(read_split(out / "split.csv"))


def test_removed_class_is_reported_and_other_classes_are_novel(root, tmp_path, caplog):
    catalog, gone, saved = VideoCatalog.from_folders(root), next(root.iterdir()).name, tmp_path / "split.csv"
    catalog.with_seeded_split(0).to_csv(saved)
    shutil.rmtree(root / gone)
    found = with_saved_split(VideoCatalog.from_folders(root), 0, saved)
    assert split_of(found).items() < read_split(saved).items()
    assert f"no longer there: {gone}" in caplog.text
    for name in catalog.class_names:
        if name != gone:
            (root / name).rename(root / f"other {name}")
    other = VideoCatalog.from_folders(root)
    assert split_of(with_saved_split(other, 0, saved)) == dict.fromkeys(other.class_names, "test")


def test_drawn_split_of_lists_is_saved(root, tmp_path, save_run):
    catalog = VideoCatalog.from_folders(root)
    lines = [f"{video} {label}\n" for video, label in zip(catalog.videos, catalog.labels, strict=True)]
    (tmp_path / "all.txt").write_text("".join(lines))
    save_run(tmp_path / "run", "smga", *flags(root), "--data.split-file", str(tmp_path / "all.txt"))
    assert set(read_split(tmp_path / "run" / "split.csv").values()) == {"train", "val", "test"}
