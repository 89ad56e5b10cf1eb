"""dmgal store, and runs that read from what it made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from dmgal.cli import main
from dmgal.recipes.run import data
from dmgal.recipes.run.config import DataConfig, Recipe
from dmgal.recipes.run.data import build_catalog
from dmgal.recipes.run.evaluation import Protocol, encode, evaluate_tasks, load_run
from dmgal.recipes.run.folder import Run

SIZE = 48  # of tiny-clip's images


@pytest.fixture
def store(frame_folders: Path, tmp_path: Path) -> Path:
    data = ["--data.root", str(frame_folders), "--data.split-file", str(frame_folders / "split.csv")]
    folder = tmp_path / "store"
    assert main(["store", *data, "--data.store", str(folder), "--workers", "1", "--quiet"]) == 0
    return folder


def recipe(frame_folders: Path, store: Path | None) -> Recipe:
    split_file = frame_folders / "split.csv"
    return Recipe(data=DataConfig(root=frame_folders, split_file=split_file, store=store, num_workers=0))


@pytest.mark.parametrize("layer", ["data/ssv2_small", "data/moving_shapes"])
def test_mirroring_data_with_left_and_right_raises(layer, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "method/smga", layer, "--data.flip"])
    assert ended.value.code == 2 and "may not be mirrored" in capsys.readouterr().err


def test_store_without_folder_raises(frame_folders, capsys):
    assert main(["store", "--data.root", str(frame_folders), "--size", "48"]) == 2
    assert "pass --out FOLDER" in capsys.readouterr().err


def test_out_overrides_data_store(frame_folders, tmp_path, capsys):
    data = ["--data.root", str(frame_folders), "--data.split-file", str(frame_folders / "split.csv")]
    flags = [*data, "--size", "48", "--workers", "1", "--quiet"]
    assert main(["store", *flags, "--out", str(tmp_path / "a b"), "--data.store", str(tmp_path / "other")]) == 0
    assert (tmp_path / "a b" / "test").is_dir() and not (tmp_path / "other").exists()
    assert f"read it with: --data.store '{tmp_path / 'a b'}'" in capsys.readouterr().out


def test_stored_clips_equal_decoded_clips(frame_folders, store):
    plain, stored = (recipe(frame_folders, folder) for folder in (None, store))
    catalog = build_catalog(plain.data).split("test")
    exact, read = (data.test_clips(catalog, one, (SIZE, SIZE)) for one in (plain, stored))
    assert len(exact) == len(read) > 0
    assert all(torch.equal(exact[video], read[video]) for video in range(len(exact)))


def test_run_trains_and_evaluates_from_a_store(frame_folders, store, data_flags, tmp_path):
    flags = [
        *data_flags,
        "--data.num-frames",
        "8",
        "--data.store",
        str(store),
        "--train.steps",
        "2",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(["train", "method/smga", *flags]) == 0
    run_recipe, recognizer = load_run(Run(tmp_path / "run"))
    assert run_recipe.data.store == store
    catalog, protocol = build_catalog(run_recipe.data), Protocol(n_way=2, k_shot=1, episodes=10)
    plain = replace(run_recipe, data=replace(run_recipe.data, store=None))
    encoded = [encode(recognizer, one, catalog, protocol, progress=False) for one in (run_recipe, plain)]
    with_store, without = (
        evaluate_tasks(recognizer, one, states, protocol, progress=False)["accuracy"]
        for one, states in zip((run_recipe, plain), encoded, strict=True)
    )
    assert torch.equal(with_store.accuracies, without.accuracies) and with_store.episodes == without.episodes


def test_stale_store_raises_with_the_difference(frame_folders, store, data_flags, tmp_path, capsys):
    flags = [*data_flags, "--data.num-frames", "8", "--data.store", str(store), "--out", str(tmp_path / "run")]
    assert main(["train", "method/smga", *flags, "--data.num-frames", "4"]) == 2
    assert "num_frames=8" in capsys.readouterr().err
    frame = next((frame_folders / "val").rglob("0.png"))
    content = frame.read_bytes()
    try:
        Image.new("RGB", (48, 48)).save(frame)
        assert main(["train", "method/smga", *flags]) == 2
    finally:
        frame.write_bytes(content)
    said = capsys.readouterr().err
    assert "is stale" in said and "1 of " in said and "dmgal store" in said


def test_store_of_small_frames_is_refused(frame_folders, data_flags, tmp_path, capsys):
    data = ["--data.root", str(frame_folders), "--data.split-file", str(frame_folders / "split.csv")]
    small = [*data, "--out", str(tmp_path / "store"), "--short-side", "24", "--workers", "1", "--quiet"]
    assert main(["store", *small]) == 0
    flags = [*data_flags, "--data.num-frames", "8", "--data.store", str(tmp_path / "store")]
    assert main(["train", "method/smga", *flags, "--out", str(tmp_path / "run")]) == 2
    assert "are too small" in (said := capsys.readouterr().err) and "--short-side 48" in said
